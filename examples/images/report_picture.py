"""The README's picture of a report: its plot of scores and its samples, photographed by a browser without a window.

gmtool quickstart
python examples/images/report_picture.py quickstart/report.html examples/images/report.png
"""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

WIDTH, HEIGHT = 1000, 1400
COLOURS = 160

STYLE = """
  html { overflow: hidden; } nav, footer, .about, .controls, .scroll, #theme, .eyebrow { display: none; }
  section:not(#scores, #samples) { display: none; } section { padding-top: 0; margin-top: 20px; border: 0; }
  header { padding: 20px 24px 0; } h2 { display: none; } .plot { height: 260px; } .picture img { width: 174px; }
"""
"""Hides all but what is to be seen."""


def photograph(page: Path, picture: Path) -> None:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        raise SystemExit("no chromium is installed (Debian: apt-get install chromium)")
    text = page.read_text("utf-8")
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)  # which would refuse another style
    with tempfile.TemporaryDirectory() as folder:
        shown, taken = Path(folder) / "page.html", Path(folder) / "page.png"
        shown.write_text(text.replace("</style>", f"{STYLE}</style>", 1), "utf-8")
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            f"--user-data-dir={folder}/profile",
        ]
        size = [f"--window-size={WIDTH},{HEIGHT}", "--virtual-time-budget=3000"]
        subprocess.run(
            [chromium, *flags, *size, f"--screenshot={taken}", shown.as_uri()], check=True, capture_output=True
        )
        image = Image.open(taken).convert("RGB")
    paper = Image.new("RGB", image.size, image.getpixel((0, image.height - 1)))
    _, _, _, bottom = ImageChops.difference(image, paper).getbbox() or (0, 0, 0, image.height)
    image = image.crop((0, 0, image.width, min(bottom + 16, image.height)))
    image.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    photograph(Path(sys.argv[1]), Path(sys.argv[2]))
