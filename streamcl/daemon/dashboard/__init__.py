"""The dashboard at /: one self-contained document, made of `page.html`, `style.css` and `script.js` beside this file.

Guarantees: it loads nothing from elsewhere. `POLICY` lets a browser run this script and use this style only, by their
digests, and talk to this daemon only.
"""

from __future__ import annotations

import base64
import hashlib
from importlib.resources import files


def _part(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


_STYLE, _SCRIPT = _part("style.css"), _part("script.js")
PAGE = _part("page.html").replace("/* style */", _STYLE).replace("/* script */", _SCRIPT)
POLICY = (
    f"default-src 'none'; style-src {_digest(_STYLE)}; script-src {_digest(_SCRIPT)}; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
