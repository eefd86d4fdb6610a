"""Parts of documents that programs write."""

import re

from swag_models.errors import ConfigError


def replace_table(text: str, name: str, table: str) -> str:
    """Return a document with another table between `<!-- name: ... -->` and `<!-- /name -->`.

    Args:
        text: the document.
        name: of the table.
        table: the new lines.

    Raises:
        ConfigError: the marks are missing, or there are several pairs.
    """
    parts = re.split(rf"(<!-- {name}: [^>]*-->\n).*?(<!-- /{name} -->)", text, flags=re.DOTALL)
    if len(parts) != 4:  # before, the two marks, and after
        raise ConfigError(
            f"the document has {len(parts) // 3} tables {name!r}; give it one pair of marks"
        )
    before, begin, end, after = parts
    return f"{before}{begin}{table}\n{end}{after}"
