"""Mutation testing: change one operator or number of a module, and see whether its tests fail.

    python tests/mutants/run.py                       # a sample of each module, with a fixed seed
    python tests/mutants/run.py --again               # those that survived, after a change of tests
    python tests/mutants/run.py --all models/vit.py   # every mutant of one module

cosmic-ray makes the mutants. mutmut calls every function through a wrapper, which torch.compile
cannot trace. The mutants are tested in a copy of the repository in build/mutants, each in a fork of
this process, which has imported torch. Outcomes: tests/mutants/README.md.
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
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import parso  # before cosmic_ray, which imports its parts in an order that fails
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names
from equivalent import EQUIVALENT
from forks import Order, run_tests
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


def test_module(module: str, options: argparse.Namespace, order: Order) -> None:
    """Test the mutants of a module, and write their outcomes to build/mutants."""
    path = TREE / "swag_models" / module
    source, tests = path.read_text("utf-8"), MODULES[module]
    mutants = find_mutants(source)
    chosen = mutants if options.all else choose(mutants, options.count, module, options.seed)
    record_path = FOLDER / f"{module.replace('/', '.')}.json"
    outcomes: dict[tuple[str, str], str] = {}
    if options.again and record_path.exists():
        results = json.loads(record_path.read_text("utf-8"))["results"]
        outcomes = {(result["before"], result["after"]): result["outcome"] for result in results}
    equivalent = {entry[1:3] for entry in EQUIVALENT if entry[0] == module}
    print(f"{module}: {len(chosen)} of {len(mutants)} mutants", flush=True)
    is_prepared = False
    for mutant in chosen:
        change = (mutant.before, mutant.after)
        outcome = outcomes.get(change, "unknown")
        if outcome == "unknown" or (outcome == "survived" and change not in equivalent):
            if not is_prepared:
                prepare_tests(module, order)
                is_prepared = True
            path.write_text(mutant.code, "utf-8")
            order.changed, order.complete = (module, mutant.line), outcome == "survived"
            outcome = run_tests(tests, 60 + 3 * order.estimate(tests), order, FOLDER)
        if outcome == "survived" and change in equivalent:
            outcome = "equivalent"
        outcomes[change] = outcome
        if outcome != "killed":
            print(f"  {outcome}, line {mutant.line}\n  - {mutant.before}\n  + {mutant.after}")
        sys.stdout.flush()
        results = [
            {"line": m.line, "before": m.before, "after": m.after, "outcome": found}
            for m in chosen
            if (found := outcomes.get((m.before, m.after)))
        ]
        record = {"module": module, "mutants": len(mutants), "results": results}
        record_path.write_text(json.dumps(record, indent=1))
    path.write_text(source, "utf-8")


def prepare_tests(module: str, order: Order) -> None:
    """Compile the tests of a module, and run those without a change that were not run before."""
    # Only this run compiles: two mutants of a module with one size and one time stamp would share
    # a compiled file. The module itself has an older time stamp.
    set_bytecode(True)
    order.changed, order.kills = None, Counter()
    unknown = order.find_unknown(MODULES[module])
    for files, flags in ((unknown, ()), (MODULES[module], ("--collect-only",))):
        if files and run_tests(files, 3000, order, FOLDER, *flags) != "survived":
            output = (FOLDER / "log.txt").read_text("utf-8", "replace")
            raise SystemExit(f"The tests of {module} fail without a mutant:\n{output}")
    order.keep(unknown)
    set_bytecode(False)


def set_bytecode(enable: bool) -> None:
    """Choose whether this process, its forks and their children write compiled files."""
    sys.dont_write_bytecode = not enable
    os.environ["PYTHONDONTWRITEBYTECODE"] = "" if enable else "1"  # only a value has an effect


def main() -> None:
    """Test the mutants of the modules named on the command line, or of all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("modules", nargs="*", metavar="MODULE", help=", ".join(MODULES))
    parser.add_argument("--count", type=int, default=20, help="mutants for each module")
    parser.add_argument("--all", action="store_true", help="test every mutant: hours")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--again",
        action="store_true",
        help="test only those that survived the last run, with all tests of the module",
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
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # plugins want to be imported by pytest
    }
    sys.path.insert(0, str(TREE))
    for name in IMPORTS:
        importlib.import_module(name)
    assert not any(name.startswith("swag_models") for name in sys.modules)
    gc.freeze()  # pytest collects garbage at its end; without this that takes most of the time
    order = Order(TREE, FOLDER / "tests_and_lines.json")
    for module in options.modules or MODULES:
        test_module(module, options, order)
    from report import write_report  # imports this package, which must not be in the forks

    write_report(FOLDER)


if __name__ == "__main__":
    main()
