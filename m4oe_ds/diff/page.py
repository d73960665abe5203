"""``diff.html``: one self-contained page about two runs."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_TEMPLATE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,"><title>{{ title }}</title><style>
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; margin: 0 auto; max-width: 72rem; padding: 1rem;
overflow-wrap: break-word; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; border-bottom: 1px solid #d0d7de; margin-top: 2rem; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-size: .88rem; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid #d0d7de; text-align: left; vertical-align: top; }
thead th { background: #f6f8fa; } img { width: 100%; max-width: 68rem; height: auto; }
.banner { background: #fff4d6; border-left: .4rem solid #e69f00; padding: .6rem 1rem; }
.soft { color: #57606a; }
</style></head><body>
<h1>{{ title }}</h1>
{% if synthetic %}<p class="banner">Synthetic data: no number on this page is about people.</p>{% endif %}
{% for part in parts %}<h2>{{ part.title }}</h2>
{% for line in part.lines %}<p>{{ line }}</p>{% endfor %}
{% if part.rows %}<div class="scroll" tabindex="0" role="region" aria-label="{{ part.title }}"><table><thead><tr>
{% for cell in part.rows[0] %}<th scope="col">{{ cell }}</th>{% endfor %}</tr></thead><tbody>
{% for row in part.rows[1:] %}<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</tbody></table></div>{% endif %}
{% for name, image in part.images.items() %}<img src="{{ image }}" alt="{{ name }}">{% endfor %}
{% endfor %}</body></html>
"""


def write(path: Path, title: str, synthetic: bool, parts: Sequence[Mapping[str, Any]]) -> None:
    """Writes the page.

    Args:
        path: of the file.
        title: its heading.
        synthetic: whether one of the runs learned from synthetic data.
        parts: each with ``title``, ``lines`` of text, ``rows`` of a table (the first is its heading) and ``images``:
            SVG files by what they show.
    """
    import jinja2

    shown = [
        {**part, "images": {name: _embedded(Path(image)) for name, image in part["images"].items()}} for part in parts
    ]
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    text = environment.from_string(_TEMPLATE).render(title=title, synthetic=synthetic, parts=shown)
    temporary = path.with_name(f".{path.name}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def _embedded(path: Path) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(path.read_bytes()).decode()
