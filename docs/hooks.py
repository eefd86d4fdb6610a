"""Hooks of MkDocs: pages from files outside of docs/, the API reference, links.

The pages of docs/ link to README.md, source files and folders by relative paths, for readers of the
repository. On the site, such a link leads to the page of that file, or else to the repository.
"""

from __future__ import annotations

import ast
import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Files outside of docs/ that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "CHANGELOG.md": "changelog.md",
    "benchmarks/README.md": "benchmarks.md",
}
PACKAGES = ("inference", "models", "publish", "export", "errors")
REPOSITORY_FILES = {page: file for file, page in PAGES.items()}
LINK = re.compile(r"(\]\()([^)#\s]+)((?:#[^)\s]*)?\))")
log = logging.getLogger("mkdocs.plugins.swag_models")


def on_config(config: Any) -> Any:
    """Add pages to the navigation that not every version has."""
    for title, page in {"Model zoo": "models.md", "Migration": "migration.md"}.items():
        if (ROOT / "docs" / page).exists():
            config["nav"].insert(-1, {title: page})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that are made of other files."""
    for source, page in PAGES.items():
        text = (ROOT / source).read_text("utf-8")
        files.append(File.generated(config, page, content=text))
    for package in ("swag_models", *PACKAGES):
        page = f"reference/{package}.md"
        files.append(File.generated(config, page, content=write_reference(package)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the relative links of a page, outside of its code blocks."""
    uri = page.file.src_uri
    if uri.startswith("reference/"):
        return markdown
    source = REPOSITORY_FILES.get(uri, f"docs/{uri}")
    parts = re.split(r"(^```.*?^```)", markdown, flags=re.DOTALL | re.MULTILINE)

    def replace(link: re.Match[str]) -> str:
        return link[1] + resolve_link(source, uri, link[2]) + link[3]

    return "".join(part if part.startswith("```") else LINK.sub(replace, part) for part in parts)


def resolve_link(source: str, uri: str, target: str) -> str:
    """Return the target of a link on the site.

    Args:
        source: path of the file with the link, in the repository.
        uri: path of its page, in the site's sources.
        target: the target in the file, relative to `source`, or a URL.
    """
    if re.match(r"[a-z]+:", target):
        return target
    path = posixpath.normpath(posixpath.join(posixpath.dirname(source), target))
    if not (ROOT / path).exists():
        log.warning("%s links to %s, which does not exist", source, target)
        return target
    if path in PAGES:
        page = PAGES[path]
    elif path.startswith("docs/"):
        page = path.removeprefix("docs/")
    else:
        kind = "tree" if (ROOT / path).is_dir() else "blob"
        return f"{read_repository()}/{kind}/main/{path}"
    return posixpath.relpath(page, posixpath.dirname(uri) or ".")


def read_repository() -> str:
    """Return the URL of the repository, which pyproject.toml states."""
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    match = re.search(r'^Repository = "(.+)"$', text, re.MULTILINE)
    assert match
    return match[1]


def write_reference(package: str) -> str:
    """Return the page of a package: the public names that are functions, classes and constants."""
    name = "swag_models" if package == "swag_models" else f"swag_models.{package}"
    path = ROOT / name.replace(".", "/")
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(file.read_text("utf-8"))
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    ]
    summary = (ast.get_docstring(tree) or "").split("\n")[0]
    lines = [f"# {name}", summary]
    if models := [name for name in names if re.match(r"vit_|regnety_", name)]:
        lines.append(
            f"The {len(models)} models of the catalog are functions too, for example "
            f"`swag_models.{models[0]}(pretrained=True, progress=True, **kwargs)`."
        )
    lines += [f"::: {name}.{public}" for public in names if public not in models]
    return "\n\n".join(lines) + "\n"
