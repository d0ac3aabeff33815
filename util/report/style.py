"""What a report looks like: light and dark, on a phone, a screen and paper; and the slider of its pictures."""

HEAD = """<!doctype html>
<html lang="{language}">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta name="generator" content="{generator}">
<title>{title}</title>
<style>
{style}</style>
</head>
"""

# Okabe and Ito's colours, which also differ for the colour-blind; lighter ones on dark. heat: right, miss: wrong.
STYLE = """:root { --page: #fff; --card: #f6f7f9; --text: #1a1d21; --soft: #59616b; --line: #d8dce1; --grid: #e6e9ed;
  --s0: #0072b2; --s1: #d55e00; --s2: #009e73; --s3: #a8477f; --s4: #8a6d00; --s5: #2f2f2f;
  --heat: 0 114 178; --miss: 213 94 0; --most-heat: .75; --most-miss: .9;
  --zone: 120 128 138; --bad: #b3261e; --warn: #8a5a00 }
@media (prefers-color-scheme: dark) { :root { --page: #14171a; --card: #1d2125; --text: #e8eaed; --soft: #a2abb5;
  --line: #3a4148; --grid: #2a2f35; --s0: #56b4e9; --s1: #ff8a3d; --s2: #2fd0a0; --s3: #e79ac6; --s4: #f0e442;
  --s5: #d0d0d0; --heat: 86 180 233; --miss: 255 138 61; --most-heat: .5; --most-miss: .5;
  --zone: 150 160 172; --bad: #ff8a80; --warn: #ffc766 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 16px; max-width: 1240px; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", "PingFang SC", "Microsoft YaHei",
  "Noto Sans CJK SC", sans-serif; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .2em 0 .6em }
h2 { font-size: 1.2rem; margin: 2em 0 .6em; padding-top: .6em; border-top: 1px solid var(--line) }
h3 { font-size: 1rem; margin: 1.4em 0 .4em }
p { margin: .4em 0 }
.soft, caption, .legend, figcaption { color: var(--soft); font-size: .875rem }
.facts { display: grid; gap: 10px; grid-template-columns: repeat(auto-fill, minmax(140px, 1fr));
  margin: 0 0 1em; padding: 0 }
.facts div { background: var(--card); border-radius: 8px; padding: 10px 12px }
.facts dt { color: var(--soft); font-size: .8125rem }
.facts dd { margin: 0; font-size: 1.3rem; font-weight: 600; font-variant-numeric: tabular-nums }
ul.said { list-style: none; padding: 0; margin: .5em 0 }
ul.said > li { padding: 6px 12px; margin: 6px 0; border-left: 4px solid var(--s0); background: var(--card);
  border-radius: 0 6px 6px 0 }
ul.said > li.bad { border-left-color: var(--bad) }
ul.said > li.bad::before { content: "\\25B2\\00A0"; color: var(--bad) }
ul.said > li.warn { border-left-color: var(--warn) }
ul.said > li.warn::before { content: "!\\00A0"; color: var(--warn); font-weight: 700 }
.charts { display: grid; gap: 22px; grid-template-columns: repeat(auto-fill, minmax(min(100%, 350px), 1fr)) }
figure { margin: 0; min-width: 0 }
figure > h3 { margin: 0 0 .2em }
figure > svg { display: block; width: 100%; height: auto }
svg text { font-size: 12px; fill: var(--soft) }
svg polyline { fill: none; stroke-width: 2; stroke-linejoin: round }
svg line { stroke-width: 2 }
svg .grid { stroke: var(--grid); stroke-width: 1 }
svg .axis { stroke: var(--line); stroke-width: 1 }
svg .zone { fill: rgb(var(--miss) / .13) }
svg .zone-edge { stroke: rgb(var(--miss) / .8); stroke-width: 1; stroke-dasharray: 4 3 }
svg .range { fill: rgb(var(--zone) / .6) }
polyline.ref, line.ref { stroke: rgb(var(--zone) / .4); stroke-width: 7; stroke-linecap: round }
circle.ref { fill: none }
polyline.s0, line.s0 { stroke: var(--s0) } circle.s0 { fill: var(--s0) }
polyline.s1, line.s1 { stroke: var(--s1) } circle.s1 { fill: var(--s1) }
polyline.s2, line.s2 { stroke: var(--s2) } circle.s2 { fill: var(--s2) }
polyline.s3, line.s3 { stroke: var(--s3) } circle.s3 { fill: var(--s3) }
polyline.s4, line.s4 { stroke: var(--s4) } circle.s4 { fill: var(--s4) }
polyline.s5, line.s5 { stroke: var(--s5) } circle.s5 { fill: var(--s5) }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: 2px 16px; padding: 0 0 0 8px; margin: 4px 0 0 }
.legend li { display: flex; gap: 6px; align-items: baseline }
.legend svg { flex: none; position: relative; top: 1px }
.columns { display: grid; gap: 0 48px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr));
  align-items: start }
.columns > * { min-width: 0 }
.wide { overflow-x: auto; max-width: 100% }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; overflow-wrap: normal }
caption { text-align: left; padding-bottom: 4px }
th, td { padding: 4px 10px 4px 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--grid) }
td.n, th.n { text-align: right }
td.n { white-space: nowrap }
th { font-weight: 600 }
tbody th { font-weight: 400 }
td.long { overflow-wrap: anywhere; min-width: 8em }
.bar { display: inline-block; width: 56px; height: 8px; margin-left: 8px; background: var(--grid); border-radius: 4px }
.bar i { display: block; height: 100%; background: var(--s0); border-radius: 4px }
.matrix td, .matrix th { border: 1px solid var(--page); padding: 3px 5px; text-align: center;
  font-size: .75rem; min-width: 30px }
.matrix td { background: rgb(var(--miss) / calc(var(--v) * var(--most-miss))) }
.matrix td.right { background: rgb(var(--heat) / calc(var(--v) * var(--most-heat))) }
.matrix tbody th { text-align: right; max-width: 9em }
.matrix thead th { vertical-align: bottom; max-width: 8em }
.matrix thead th span { writing-mode: vertical-rl; transform: rotate(180deg) }
.matrix td.none { color: var(--soft) }
img { max-width: 100%; height: auto }
img.matrix { image-rendering: pixelated; width: 500px; border: 1px solid var(--line) }
.frames { display: grid; gap: 16px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)) }
.slider { display: flex; gap: 12px; align-items: center; margin: 8px 0 }
.slider[hidden] { display: none }
.slider input { flex: 1; max-width: 420px; accent-color: var(--s0) }
.frames.one { display: block }
.frames.one > figure { display: none }
.frames.one > figure.on { display: block }
details { margin: .6em 0 } summary { cursor: pointer; color: var(--s0) }
@media (max-width: 500px) { .bar { display: none } th, td { padding-right: 8px } }
@media print { .slider { display: none } .frames.one > figure { display: block; break-inside: avoid }
  figure, tr, li { break-inside: avoid } body { max-width: none } .wide { overflow: visible } }
"""

# The pictures one above the other become one at a time. Whoever has no scripts sees all of them.
SCRIPT = """<script>
for (const slider of document.querySelectorAll(".slider")) {
  const frames = slider.nextElementSibling, input = slider.querySelector("input");
  const name = slider.querySelector("output");
  const show = () => { [...frames.children].forEach((figure, at) => figure.classList.toggle("on", at == input.value));
    name.textContent = frames.children[input.value].querySelector("figcaption").textContent; };
  slider.hidden = false; frames.classList.add("one"); input.addEventListener("input", show); show();
}
</script>
"""
