"""The style sheet of the page, and the script of the photograph."""

from ..inspection.colours import BLUE

__all__ = ["CSS", "PHOTO_SCRIPT"]

CSS = f"""
.gradio-container main {{ width: 100%; max-width: 1300px; margin: 0 auto; }}
.explorer h3 {{ margin: 0 0 .3em; font-size: 1.05em; overflow-wrap: anywhere; }}
.explorer p {{ margin: .2em 0 .6em; }}
.explorer section {{ margin-bottom: 1em; }}
.message.error {{ border-left: 4px solid #D55E00; padding: .5em .8em; font-weight: 600; overflow-wrap: anywhere; }}
.photo {{ position: relative; display: block; max-width: 100%; cursor: crosshair; line-height: 0; }}
.photo:focus-visible {{ outline: 3px solid {BLUE}; outline-offset: 2px; }}
.photo img {{ display: block; width: 100%; height: auto; margin: 0; user-select: none; }}
.photo span, .heat span {{ position: absolute; pointer-events: none; box-sizing: border-box; }}
.photo .seen {{ outline: 1px solid #000; border: 1px solid #fff; }}
.photo .mark, .heat .mark {{ border: 2px solid #fff; outline: 2px solid #000; }}
.photo [hidden] {{ display: none; }}
.predictions {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 260px), 1fr)); gap: 1em; }}
.predictions ol {{ list-style: none; padding: 0; margin: 0; }}
.predictions li {{ display: flex; justify-content: space-between; gap: 1em; padding: .25em .5em; margin: 0 0 3px; }}
.predictions li, .layers td[style] {{
  background: linear-gradient(to right, {BLUE}55 var(--share), transparent var(--share));
}}
.predictions li {{ border: 1px solid var(--border-color-primary); }}
.panels {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(46%, 190px), 1fr)); gap: .8em; }}
.panels figure {{ margin: 0; min-width: 0; }}
.heat {{ position: relative; aspect-ratio: var(--ratio); background: var(--photo) center / 100% 100%; }}
.heat img {{
  position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: .65; image-rendering: pixelated;
}}
.panels figcaption {{ font-size: .85em; display: grid; gap: .15em; padding-top: .25em; overflow-wrap: anywhere; }}
.bar {{ display: flex; align-items: center; gap: .4em; font-size: .9em; }}
.bar b {{ flex: 1; height: .7em; min-width: 1em; border: 1px solid var(--border-color-primary); }}
.bar i {{ font-style: normal; }}
.layers {{ border-collapse: collapse; width: 100%; max-width: 640px; font-size: .9em; }}
.layers td {{ font-variant-numeric: tabular-nums; }}
.layers th, .layers td {{
  border: 1px solid var(--border-color-primary); padding: .15em .5em; text-align: right; overflow-wrap: anywhere;
}}
.layers thead th {{ text-align: center; }}
.layers .chosen th {{ background: {BLUE}; color: #fff; }}
@media (max-width: 640px) {{ .predictions li:nth-child(n+4) {{ display: none; }} }}
"""

# `element` is the component, whose content changes with the image. `trigger` calls the listener of page.py.
PHOTO_SCRIPT = """
function parts(photo) {
  const [left, top, width, height] = photo.dataset.frame.split(" ").map(Number);
  const [rows, columns] = photo.dataset.grid.split(" ").map(Number);
  return {left, top, width, height, rows, columns};
}
function choose(photo, row, column) {
  const p = parts(photo);
  row = Math.min(Math.max(row, 0), p.rows - 1);
  column = Math.min(Math.max(column, 0), p.columns - 1);
  photo.dataset.patch = row + " " + column;
  const mark = photo.querySelector(".mark");
  mark.hidden = false;
  mark.style.left = 100 * (p.left + column / p.columns * p.width) + "%";
  mark.style.top = 100 * (p.top + row / p.rows * p.height) + "%";
  mark.style.width = 100 * p.width / p.columns + "%";
  mark.style.height = 100 * p.height / p.rows + "%";
  trigger("select", {
    x: p.left + (column + 0.5) / p.columns * p.width,
    y: p.top + (row + 0.5) / p.rows * p.height,
  });
}
element.addEventListener("click", (event) => {
  const photo = event.target.closest(".photo");
  if (!photo) return;
  const p = parts(photo), seen = photo.getBoundingClientRect();
  const x = (event.clientX - seen.left) / seen.width, y = (event.clientY - seen.top) / seen.height;
  choose(photo, Math.floor((y - p.top) / p.height * p.rows), Math.floor((x - p.left) / p.width * p.columns));
});
element.addEventListener("keydown", (event) => {
  const photo = event.target.closest(".photo");
  const move = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]}[event.key];
  if (!photo || !move) return;
  event.preventDefault();
  const p = parts(photo);
  const start = [Math.floor(p.rows / 2), Math.floor(p.columns / 2)];
  const now = photo.dataset.patch ? photo.dataset.patch.split(" ").map(Number) : null;
  choose(photo, now ? now[0] + move[0] : start[0], now ? now[1] + move[1] : start[1]);
});
"""
