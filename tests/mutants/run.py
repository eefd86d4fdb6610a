"""Mutation testing: change one operator or number of a module, and see whether its tests fail.

    python tests/mutants/run.py                       # a sample of each module, with a fixed seed
    python tests/mutants/run.py --again               # those that survived, after a change of tests
    python tests/mutants/run.py --all models/vit.py   # every mutant of one module

cosmic-ray makes the mutants. mutmut calls every function through a wrapper, which torch.compile
cannot trace. The mutants are tested in a copy of the repository in build/mutants, those of a module
in a fork of this process, which has imported torch. Outcomes: tests/mutants/README.md.
"""

from __future__ import annotations

import argparse
import ast
import gc
import importlib
import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import parso  # before cosmic_ray, which imports its parts in an order that fails
import pytest
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from equivalent import EQUIVALENT
from forks import OPTIONS, Session
from modules import IMPORTS, MODULES

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "build" / "mutants"
TREE = FOLDER / "tree"
# One replacement, or both neighbours, for each operator. Others mostly raise a TypeError, and
# would hide survivors among easy kills.
REPLACEMENTS = {
    "Comparison": (
        *("Eq_NotEq", "NotEq_Eq", "Is_IsNot", "IsNot_Is"),
        *("Lt_LtE", "Lt_GtE", "LtE_Lt", "LtE_Gt", "Gt_GtE", "Gt_LtE", "GtE_Gt", "GtE_Lt"),
    ),
    "Binary": (
        *("Add_Sub", "Sub_Add", "Mul_Div", "Div_Mul", "FloorDiv_Div", "Mod_FloorDiv", "Pow_Mul"),
        *("LShift_RShift", "RShift_LShift", "BitOr_BitAnd", "BitAnd_BitOr", "BitXor_BitOr"),
    ),
}
OPERATORS = {
    *(
        f"core/Replace{kind}Operator_{name}"
        for kind, names in REPLACEMENTS.items()
        for name in names
    ),
    *(name for name in operator_names() if "ReplaceUnaryOperator" in name),
    "core/AddNot",
    "core/ExceptionReplacer",
    "core/NumberReplacer",
    "core/RemoveDecorator",
    "core/ReplaceAndWithOr",
    "core/ReplaceOrWithAnd",
    "core/ReplaceBreakWithContinue",
    "core/ReplaceContinueWithBreak",
    "core/ReplaceFalseWithTrue",
    "core/ReplaceTrueWithFalse",
    "core/ZeroIterationForLoop",
}


@dataclass(frozen=True)
class Mutant:
    """One changed version of a module.

    Attributes:
        line: number of the changed line.
        before: the line, without indentation; lines of one statement are joined.
        after: what it is changed to.
        code: source of the changed module.
    """

    line: int
    before: str
    after: str
    code: str


def find_mutants(source: str) -> list[Mutant]:
    """Return every mutant that compiles, in the order of the lines."""
    tree, syntax_tree = parso.parse(source), ast.parse(source)
    excluded = list_excluded(syntax_tree)
    mutants = []
    for name in sorted(OPERATORS):
        operator = get_operator(name)()
        positions = [start for node in walk(tree) for start, _ in operator.mutation_positions(node)]
        for occurrence, start in enumerate(positions):
            if any(low <= start < high for low, high in excluded):
                continue
            code = mutate_code(source, operator, occurrence)
            if code is None:
                continue
            try:
                if ast.dump(ast.parse(code)) == ast.dump(syntax_tree):
                    continue
            except SyntaxError:
                continue
            mutants.append(describe(source, code))
    return sorted(mutants, key=lambda mutant: (mutant.line, mutant.after))


def walk(node: parso.tree.NodeOrLeaf) -> list[parso.tree.NodeOrLeaf]:
    """Return a node and those below it, in the order in which cosmic-ray counts them."""
    children = getattr(node, "children", ())
    return [node, *(inner for child in children for inner in walk(child))]


def list_excluded(tree: ast.Module) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Return (start, end) of the source that is not changed.

    These are annotations, which do not run, the `*` before keyword-only parameters, and the
    operator beside a string literal, which refuses any other.
    """
    ranges = []
    for node in ast.walk(tree):
        types = (getattr(node, "annotation", None), getattr(node, "returns", None))
        ranges += [((part.lineno, part.col_offset), end_of(part)) for part in types if part]
        if isinstance(node, ast.arguments) and node.kwonlyargs and not node.vararg:
            first = node.kwonlyargs[0]
            before = [*node.posonlyargs, *node.args, *node.defaults][-1:]
            start = end_of(before[0]) if before else (first.lineno - 1, 0)
            ranges.append((start, (first.lineno, first.col_offset)))
        if isinstance(node, ast.BinOp) and any(
            isinstance(side, ast.JoinedStr)
            or (isinstance(side, ast.Constant) and isinstance(side.value, str))
            for side in (node.left, node.right)
        ):
            ranges.append((end_of(node.left), (node.right.lineno, node.right.col_offset)))
    return ranges


def end_of(node: ast.expr | ast.arg) -> tuple[int, int]:
    """Return (line, column) of the end of a node."""
    return node.end_lineno or 0, node.end_col_offset or 0


def describe(source: str, code: str) -> Mutant:
    """Return a mutant with the lines that differ between the sources."""
    old, new = source.splitlines(), code.splitlines()
    start = next(i for i, (a, b) in enumerate(zip(old, new)) if a != b)
    end = next(i for i, (a, b) in enumerate(zip(old[::-1], new[::-1])) if a != b)
    before, after = (
        " ".join(filter(None, map(str.strip, lines[start : max(start, len(lines) - end)])))
        for lines in (old, new)
    )
    return Mutant(start + 1, before, after, code)


def choose(mutants: list[Mutant], count: int, module: str, seed: int) -> list[Mutant]:
    """Choose mutants of different lines at random; those of the same line once all have one."""
    shuffled = random.Random(f"{seed} {module}").sample(mutants, len(mutants))
    lines: dict[int, int] = {}
    ranked = []
    for mutant in shuffled:
        lines[mutant.line] = rank = lines.get(mutant.line, 0) + 1
        ranked.append((rank, mutant))
    chosen = [mutant for _, mutant in sorted(ranked, key=lambda item: item[0])[:count]]
    return sorted(chosen, key=lambda mutant: mutant.line)


def copy_repository() -> None:
    """Copy the files of the repository, changed and new ones too, without compiled ones."""
    shutil.rmtree(TREE, ignore_errors=True)
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        check=True,
        capture_output=True,
        text=True,
    )
    for name in listed.stdout.split("\0"):
        source, target = REPOSITORY / name, TREE / name
        if source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)


def test_module(module: str, options: argparse.Namespace) -> None:
    """Test the mutants of a module, and write their outcomes to build/mutants.

    This process must not have imported the package before; it cannot test another module.
    """
    mutants = find_mutants((TREE / "swag_models" / module).read_text("utf-8"))
    chosen = mutants if options.all else choose(mutants, options.count, module, options.seed)
    path = FOLDER / f"{module.replace('/', '.')}.json"
    outcomes: dict[tuple[str, str], str] = {}
    if options.again and path.exists():
        results = json.loads(path.read_text("utf-8"))["results"]
        outcomes = {(result["before"], result["after"]): result["outcome"] for result in results}
    equivalent = {entry[1:3] for entry in EQUIVALENT if entry[0] == module}

    def report(mutant: Mutant, outcome: str) -> None:
        change = (mutant.before, mutant.after)
        outcomes[change] = "equivalent" if outcome != "killed" and change in equivalent else outcome
        if outcome != "killed":
            print(f"  {outcomes[change]}, line {mutant.line}\n  - {change[0]}\n  + {change[1]}")
        sys.stdout.flush()
        results = [
            {"line": m.line, "before": m.before, "after": m.after, "outcome": found}
            for m in chosen
            if (found := outcomes.get((m.before, m.after)))
        ]
        record = {"module": module, "mutants": len(mutants), "results": results}
        path.write_text(json.dumps(record, indent=1))

    print(f"{module}: {len(chosen)} of {len(mutants)} mutants", flush=True)
    done = ("killed", "equivalent", "timeout")
    remaining = [m for m in chosen if outcomes.get((m.before, m.after)) not in done]
    if remaining:
        session = Session(TREE, module, MODULES[module], remaining, report, FOLDER)
        arguments = [*OPTIONS, "--basetemp", str(FOLDER / "temporary")]
        arguments += [f"tests/{test}" for test in MODULES[module]]
        if code := pytest.main(arguments, plugins=[session]):
            raise SystemExit(f"the tests of {module} cannot be collected: {code!r}")


def main() -> None:
    """Test the mutants of the modules named on the command line, or of all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(MODULES))
    parser.add_argument("--count", type=int, default=20, help="mutants for each module")
    parser.add_argument("--all", action="store_true", help="test every mutant: hours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--again", action="store_true", help="do not test those again that the last run killed"
    )
    options = parser.parse_args()
    if unknown := set(options.modules) - set(MODULES):
        parser.error(f"unknown modules: {', '.join(unknown)}; known: {', '.join(MODULES)}")
    copy_repository()
    os.chdir(TREE)
    os.environ |= {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONPATH": str(TREE),
        "PYTHONDONTWRITEBYTECODE": "1",  # two mutants can have one size and one time stamp
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # plugins want to be imported by pytest
    }
    sys.dont_write_bytecode = True
    sys.path.insert(0, str(TREE))
    for name in IMPORTS:
        importlib.import_module(name)
    for module in options.modules or MODULES:
        assert not any(name.startswith("swag_models") for name in sys.modules)
        gc.freeze()  # pytest collects garbage at its end; without this that takes most of the time
        if (child := os.fork()) == 0:
            test_module(module, options)
            sys.stdout.flush()
            os._exit(0)
        if os.waitpid(child, 0)[1]:
            raise SystemExit(f"{module} could not be tested")
    from report import write_report  # imports this package, which must not be in the forks

    write_report(FOLDER)


if __name__ == "__main__":
    main()
