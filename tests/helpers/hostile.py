"""Names with a special meaning in some format. Every format is tested with all of them."""

from __future__ import annotations

FORMULAS = [
    "=cmd|' /C calc'!A0", "@SUM(1)", "+1+1", "-1-1", "\t=1", "\r=1", "  =1", "\n=1", "＝1+1",
]  # fmt: skip
"""Texts that a spreadsheet would execute as formulas."""
NAMES = [
    *FORMULAS, "\x00=1", "\u202e=1", "\ufeff=1", "\x1b=1", "'\t=1",
    # HTML, attributes, scripts, JSON inside scripts, and templates.
    "</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "'-alert(1)-'", "<!--",
    "\"'><svg/onload=alert(1)>", "]]>", "&lt;b&gt; &amp; &#60;", "</title></style></textarea>",
    "{{ 7*7 }}", "{% raw %}{# x", "${alert(1)}", "javascript:alert(1)", "__proto__", "$title",
    "\\u003cb\\u003e \\", "\u2028\u2029",
    # Markdown
    "*b* _i_ __b__ `c` ~~s~~ ~s~", "[a](http://x)", "![a](http://x/y.png)", "<http://x>", "# h",
    "http://x.com www.x.com", "a|b\\|c\\", "- a", "1. a", "12) a", "> q", "---", "- - -", "+",
    "a #", "    code", "```", "~~~", "[a]: http://x", "$x$ $$y$$",
    # LaTeX
    "{\\input{x}}", "[1em]", "a_b^c~d#e%f&g", "\\\\*", "^^41", "--- `` ''", "\\end{table}",
    "?` !` << >> ,,",
    # Terminal escapes, line breaks, and changes of text direction.
    "line\nbreak\r\nanother", "\x1b[31mred\x1b]0;title\x07", "\x00\x01\x7f\x9b31m", "tab\tbed",
    "\u202eevil\u2066\u200b\ufeff", "[bold]rich[/bold] [link=http://x]y[/link]", "%s %(x)s {0}",
    "\x0b\x0c\x85",
    # File names, characters that few fonts have, unpaired surrogates, empty names.
    "../../x", "a/b", "CON", "中文 😀 e\u0301", "\ud800", "\ude00\ud83d", "", " ",
]  # fmt: skip

HOSTILE = (
    "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&\u2028\x1b[31m\u202e$title"
)
