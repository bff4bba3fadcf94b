"""How a report looks: one sheet, for light, dark, narrow and printed pages."""

CSS = """
:root {
  color-scheme: light dark;
  --paper: #fcfcfb; --raised: #f3f4f2; --ink: #23272e; --soft: #5a616b; --line: #dcdfe2;
  --faint: #8b9098; --link: #1b5e99; --mark: #fff3c9; --bad: #b3261e; --good: #00704f;
  --busy: #1b5e99; --warn: #7d5d00;
  --g0: #1f6fb2; --g1: #c2410c; --g2: #00805f; --g3: #a8497f;
  --g4: #8a6d00; --g5: #3b8fb8; --g6: #6b4fa0; --g7: #5c5f66;
}
@media screen and (prefers-color-scheme: dark) {
  :root {
    --paper: #15181c; --raised: #1e2228; --ink: #e4e6e9; --soft: #a3abb5; --line: #363c44;
    --faint: #7f8791; --link: #7db8ea; --mark: #3a3317; --bad: #ff8a80; --good: #5fd0a8;
    --busy: #7db8ea; --warn: #e0b94d;
    --g0: #62a9e6; --g1: #f08a5a; --g2: #46c39b; --g3: #e08dba;
    --g4: #d6b23c; --g5: #7fcdf0; --g6: #b09be8; --g7: #b0b4bb;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; max-width: 82rem;
  background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", sans-serif;
}
h1 { font-size: clamp(1.5rem, 4vw, 2.1rem); line-height: 1.2; margin: 0 0 .4rem; }
h1, h2, h3 { letter-spacing: -.01em; overflow-wrap: anywhere; }
h2 { font-size: 1.3rem; margin: 2.8rem 0 .8rem; padding-top: .6rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.8rem 0 .5rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: var(--link); text-underline-offset: .15em; }
code { font: .84em/1.5 ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  overflow-wrap: anywhere; }
nav { margin: 1rem 0 0; font-size: .92rem; }
nav a { display: inline-block; margin: 0 1.1rem .2rem 0; }
dl.facts { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: .15rem 1.2rem;
  margin: 1rem 0; font-size: .92rem; }
dl.facts dt { color: var(--soft); }
dl.facts dd { margin: 0; overflow-wrap: anywhere; }
.lead { color: var(--soft); font-size: 1.05rem; }
.note { color: var(--soft); font-size: .86rem; }
.warning { border-left: 3px solid var(--warn); padding-left: .8rem; font-size: .92rem;
  overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .6rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { padding: .32rem .6rem; text-align: right; vertical-align: top; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { padding-left: .2rem; }
th { font-weight: 600; color: var(--soft); vertical-align: bottom; }
td.text, th.text { text-align: left; white-space: normal; max-width: 24rem; }
td.text:first-child:not(.long) { white-space: nowrap; }
td.group:not(.long) { white-space: nowrap; }
td.long { min-width: 14rem; }
td.text { overflow-wrap: break-word; min-width: 5rem; }
td a { color: inherit; text-decoration: none; border-bottom: 1px dotted var(--faint); }
td a:hover { color: var(--link); border-bottom-style: solid; }
td sup { margin-left: .2rem; font-size: .7em; }
.chip { display: inline-block; width: .7em; height: .7em; border-radius: 2px; margin-right: .45em; }
.c0 { background: var(--g0); } .c1 { background: var(--g1); } .c2 { background: var(--g2); }
.c3 { background: var(--g3); } .c4 { background: var(--g4); } .c5 { background: var(--g5); }
.c6 { background: var(--g6); } .c7 { background: var(--g7); }
.key { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; font-size: .92rem; padding: 0;
  list-style: none; }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(24rem, 100%), 1fr));
  gap: 1.4rem 1.6rem; margin: 1rem 0; }
.strips { display: grid; gap: 1.4rem 1.6rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(22rem, 100%), 1fr)); }
.alone { grid-column: 1 / -1; }
.alone .narrow { display: none; }
figure { margin: 0; break-inside: avoid; min-width: 0; }
figure svg { display: block; width: 100%; height: auto; overflow: visible; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 4px;
  border: 1px solid var(--line); background: #fff; }
figcaption { font-size: .9rem; font-weight: 600; margin-bottom: .35rem; overflow-wrap: anywhere; }
details { border: 1px solid var(--line); border-radius: 6px; margin: .5rem 0;
  background: var(--raised); }
summary { cursor: pointer; padding: .45rem .8rem; font-weight: 600; font-size: .95rem;
  overflow-wrap: anywhere; }
details[open] summary { border-bottom: 1px solid var(--line); }
details .inside { padding: .2rem .9rem; }
details pre { margin: 0; padding: .7rem .9rem; overflow-x: auto; white-space: pre-wrap;
  overflow-wrap: anywhere; }
.runs { margin: 1.2rem 0 1.8rem; scroll-margin-top: 1rem; }
.runs h3 { margin-top: 0; }
.run { border: 1px solid var(--line); border-radius: 6px; padding: .6rem .9rem .7rem;
  margin: .5rem 0; background: var(--raised); break-inside: avoid; }
.run p { margin: .25rem 0; max-width: none; }
.run .where { font-weight: 600; overflow-wrap: anywhere; }
.run .what { font-size: .88rem; color: var(--soft); font-variant-numeric: tabular-nums; }
.run .what span { display: inline-block; margin-right: 1.2rem; overflow-wrap: anywhere; }
:target { background: var(--mark); }
.runs:target .run { background: var(--mark); }
.state { display: inline-block; font-size: .8rem; font-weight: 600; padding: 0 .5em;
  border: 1px solid currentColor; border-radius: 1em; margin-right: .6em; }
.finished { color: var(--good); } .running { color: var(--busy); }
.stopped, .not-begun { color: var(--warn); } .failed, .unreadable { color: var(--bad); }
.error { color: var(--bad); font-size: .9rem; overflow-wrap: anywhere; }
@media (max-width: 48rem) {
  .alone .narrow { display: block; }
  .alone .wide { display: none; }
}
@media (max-width: 40rem) {
  dl.facts { grid-template-columns: minmax(0, 1fr); gap: 0; }
  dl.facts dd { margin-bottom: .45rem; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 9.5pt; }
  nav { display: none; }
  .scroll { overflow: visible; }
  table { font-size: 7.5pt; }
  th, td { padding: .2rem .35rem; white-space: normal; }
  h2, h3, summary { break-after: avoid; }
  a { color: inherit; text-decoration: none; }
}
"""
