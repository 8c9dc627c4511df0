"""The style sheet of the report page."""

STYLE = """
:root { color-scheme: light dark; --ground: #f7f6f3; --card: #ffffff; --text: #22252a; --faint: #6b7079;
  --line: #e3e1dc; --accent: #3b6fb6; --accent-soft: #b9cfeb; --bad: #c8502d; --good: #3d8a55; }
@media (prefers-color-scheme: dark) { :root { --ground: #17191d; --card: #20242a; --text: #e6e4df; --faint: #9aa0aa;
  --line: #343a43; --accent: #7aa7e0; --accent-soft: #35506f; --bad: #e98a66; --good: #7cc493; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 1160px; background: var(--ground); color: var(--text);
  font: 15px/1.5 system-ui, "Segoe UI", "Noto Sans", sans-serif; }
h1 { font-size: 1.6rem; margin: 0 0 1rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .7rem; }
h3 { font-size: 1rem; font-weight: 600; margin: 0 0 .6rem; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: 1rem 1.2rem;
  margin-bottom: 1rem; overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(140px, 1fr)); gap: .8rem; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px; padding: .7rem 1rem; }
.tile b { display: block; font-size: 1.5rem; font-weight: 600; }
.tile span { color: var(--faint); }
.tile.bad b { color: var(--bad); }
table { border-collapse: collapse; margin-bottom: .9rem; }
th, td { text-align: right; padding: .2rem .9rem .2rem 0; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { color: var(--faint); font-weight: 500; }
svg { width: 100%; height: auto; display: block; }
svg text { font-size: 12.5px; fill: var(--text); }
svg .faint { fill: var(--faint); }
.bar { fill: var(--accent); } .bar-cut { fill: var(--accent-soft); } .bar-bad { fill: var(--bad); }
.shape { fill: var(--accent-soft); stroke: var(--accent); } .axis { fill: var(--line); }
.limit { fill: var(--bad); } svg .limit-text { fill: var(--bad); }
.legend { color: var(--faint); margin: .5rem 0 0; }
details { border-top: 1px solid var(--line); padding: .5rem 0; }
details:first-of-type { border-top: 0; }
summary { cursor: pointer; font-weight: 600; }
summary .count { display: inline-block; min-width: 2.2em; text-align: center; margin-right: .5em; border-radius: 1em;
  background: var(--accent-soft); font-weight: 500; }
details p { margin: .4rem 0; color: var(--faint); }
ul { margin: .3rem 0; padding-left: 1.2rem; }
.small { display: flex; gap: .5rem; margin: .3rem 0 .6rem; }
.small img { border-radius: 5px; border: 1px solid var(--line); max-height: 110px; }
li span { color: var(--faint); }
code { font: 13px/1.4 ui-monospace, "Cascadia Mono", "DejaVu Sans Mono", monospace; white-space: pre-wrap; }
.none { color: var(--good); }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(210px, 1fr)); gap: 1rem; align-items: start; }
figure { margin: 0; background: var(--card); border: 1px solid var(--line); border-radius: 10px; overflow: hidden; }
figure img { width: 100%; display: block; }
figcaption { padding: .5rem .7rem .7rem; font-size: 13px; overflow-wrap: anywhere; }
figcaption .where { color: var(--faint); display: block; margin-bottom: .2rem; }
figcaption .caption { display: block; max-height: 9.5em; overflow-y: auto; }
figcaption .empty { color: var(--bad); }
"""
