"""Draws docs/images/demo.svg: a terminal with real statements and what the program printed for them.

    cargo build && python3 examples/demo/picture.py

The environment variable AEFUSION names another program than target/debug/aefusion. Only Python's standard library is used.
Run the script again when the output of the program changes.
"""

import os
import re
import subprocess
import sys
import tempfile
import textwrap
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "docs" / "images" / "demo.svg"
LIBRARY = ROOT / ".onnxruntime" / "lib" / "libonnxruntime.so"

STATEMENTS = [
    """\
CREATE MODEL pixel AS
  SELECT * EXCEPT (id, label, fit_0, fit_1, fit_2)
  FROM 'examples/demo/satimage-2.parquet' WHERE fit_0""",
    """\
SELECT id, round(ae_error('pixel'), 2) AS error, round(ae_pvalue('pixel'), 4) AS p,
       ae_contributions('pixel')[1]['feature'] AS cause, label = 1 AS known_anomaly
  FROM 'examples/demo/satimage-2.parquet' WHERE NOT fit_0 AND ae_is_anomaly('pixel')
  ORDER BY error DESC LIMIT 5""",
    """\
SELECT label, count(*) AS pixels, sum(ae_is_anomaly('pixel')::INT) AS alerts
  FROM 'examples/demo/satimage-2.parquet' WHERE NOT fit_0
  GROUP BY label ORDER BY label""",
]

COLUMNS = 100
LINE_HEIGHT = 18
FONT_SIZE = 13
CHARACTER_WIDTH = 7.8
MARGIN = 20
BAR_HEIGHT = 36

BACKGROUND, BAR = "#0d1117", "#161b22"
TEXT, COMMAND, KEYWORD, STRING, MESSAGE = "#c9d1d9", "#e6edf3", "#79c0ff", "#a5d6ff", "#8b949e"
PROMPT = "#7ee787"
LIGHTS = ["#ff5f56", "#ffbd2e", "#27c93f"]
KEYWORDS = re.compile(
    r"('[^']*')|\b(CREATE|MODEL|AS|SELECT|EXCEPT|FROM|WHERE|NOT|AND|ORDER|GROUP|BY|DESC|LIMIT)\b"
)


def main():
    program = os.environ.get("AEFUSION", str(ROOT / "target" / "debug" / "aefusion"))
    lines = []
    with tempfile.TemporaryDirectory() as models:
        environment = {**os.environ, "AEFUSION_MODELS": models}
        if LIBRARY.exists():
            environment.setdefault("ORT_DYLIB_PATH", str(LIBRARY))
        for statement in STATEMENTS:
            lines += command(statement)
            lines += output(program, statement, environment)
            lines.append([])
    PICTURE.parent.mkdir(parents=True, exist_ok=True)
    PICTURE.write_text(svg(lines[:-1]), encoding="utf-8")
    print(PICTURE)


def command(statement):
    """Lines of coloured parts, as the statement is typed in a shell."""
    typed = [highlighted(line) for line in statement.split("\n")]
    typed[0] = [("$ ", PROMPT), ("aefusion sql -c ", COMMAND), ('"', STRING)] + typed[0]
    typed[-1] = typed[-1] + [('"', STRING)]
    return typed


def highlighted(line):
    """SQL as parts of (text, colour)."""
    parts, end = [], 0
    for match in KEYWORDS.finditer(line):
        parts.append((line[end:match.start()], COMMAND))
        parts.append((match.group(0), STRING if match.group(1) else KEYWORD))
        end = match.end()
    parts.append((line[end:], COMMAND))
    return [part for part in parts if part[0]]


def output(program, statement, environment):
    """What the program prints, standard error included, cut into lines of a terminal."""
    ended = subprocess.run(
        [program, "sql", "-c", statement],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False,
    )
    if ended.returncode != 0:
        sys.exit(f"{statement}\n{ended.stdout}")
    lines = []
    for line in ended.stdout.rstrip("\n").split("\n"):
        colour = TEXT if line[:1] in "+|" else MESSAGE
        lines += [[(part, colour)] for part in textwrap.wrap(line, COLUMNS) or [""]]
    return lines


def svg(lines):
    """The terminal as a picture."""
    width = round(2 * MARGIN + COLUMNS * CHARACTER_WIDTH)
    height = BAR_HEIGHT + 2 * MARGIN + LINE_HEIGHT * len(lines) - LINE_HEIGHT // 2
    text = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
            ' role="img" aria-label="aefusion in a terminal">']
    text.append(f'<rect width="{width}" height="{height}" rx="8" fill="{BACKGROUND}"/>')
    text.append(f'<path d="M0 {BAR_HEIGHT}V8a8 8 0 0 1 8-8H{width - 8}a8 8 0 0 1 8 8V{BAR_HEIGHT}z" fill="{BAR}"/>')
    for i, light in enumerate(LIGHTS):
        text.append(f'<circle cx="{MARGIN + 20 * i}" cy="{BAR_HEIGHT // 2}" r="6" fill="{light}"/>')
    text.append('<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, \'DejaVu Sans Mono\', monospace"'
                f' font-size="{FONT_SIZE}">')
    for row, parts in enumerate(lines):
        y = BAR_HEIGHT + MARGIN + LINE_HEIGHT * row + FONT_SIZE // 2
        column = 0
        for content, colour in parts:
            # each word has its place and width: tables stay straight in every font
            for word in re.finditer(r"\S+", content):
                x = MARGIN + (column + word.start()) * CHARACTER_WIDTH
                length = len(word.group()) * CHARACTER_WIDTH
                text.append(f'<text x="{x:.1f}" y="{y}" fill="{colour}" textLength="{length:.1f}"'
                            f' lengthAdjust="spacingAndGlyphs">{escape(word.group(), quote=False)}</text>')
            column += len(content)
    text.append("</g></svg>")
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    main()
