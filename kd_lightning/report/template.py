"""The frame of the HTML page: one file, no scripts, nothing fetched from anywhere."""

from string import Template

PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>Did distillation help?</title>
<style>
:root {
  color-scheme: light dark;
  --page: #fbfbfa; --card: #ffffff; --ink: #20242b; --dim: #646b76; --line: #e1e3e7;
  --good: #177245; --bad: #b3262c; --open: #8a6100;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171b; --card: #1c2025; --ink: #e4e7eb; --dim: #98a0ab; --line: #30363e;
    --good: #58c98c; --bad: #f0797d; --open: #e0b04c;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 2rem 1.5rem 4rem; max-width: 80rem;
  background: var(--page); color: var(--ink);
  font: 14.5px/1.5 system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif;
}
h1 { font-size: 1rem; font-weight: 600; color: var(--dim); margin: 0 0 .4rem; }
h2 { font-size: 1.15rem; margin: 2.5rem 0 .6rem; }
.answer { font-size: 1.4rem; line-height: 1.4; margin: 0 0 1.4rem; text-wrap: pretty; }
.answer.helps { border-left: .35rem solid var(--good); padding-left: 1rem; }
.answer.hurts { border-left: .35rem solid var(--bad); padding-left: 1rem; }
.answer.open { border-left: .35rem solid var(--open); padding-left: 1rem; }
.cause { margin: -.6rem 0 1.2rem; max-width: 62rem; }
.scroll { overflow-x: auto; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem .55rem; text-align: right; white-space: nowrap; vertical-align: top; }
th { font-weight: 600; border-bottom: 1px solid var(--line); vertical-align: bottom; }
th.name, td.name { text-align: left; }
td.verdict { white-space: normal; }
tbody tr + tr td { border-top: 1px solid var(--line); }
small { display: block; color: var(--dim); font-weight: 400; font-size: .82rem; }
tr.teacher td { color: var(--dim); }
td.helps { color: var(--good); font-weight: 600; }
td.hurts { color: var(--bad); font-weight: 600; }
.whisker { display: block; margin: .3rem 0 0 auto; width: 8rem; height: .7rem; }
.note { color: var(--dim); font-size: .9rem; margin: .6rem 0; max-width: 62rem;
  overflow-wrap: anywhere; }
.pictures { display: grid; grid-template-columns: repeat(2, minmax(0, 1fr)); gap: 1.2rem; }
figure { margin: 0; padding: 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem; }
figure.wide { grid-column: 1 / -1; }
figure h3 { margin: 0 0 .5rem; font-size: 1rem; }
figure svg { display: block; width: 100%; height: auto; color: var(--ink); }
figure.lone svg { max-width: 44rem; margin: 0 auto; }
figure svg text { font-family: "DejaVu Sans", Verdana, system-ui, sans-serif !important; }
figcaption { color: var(--dim); font-size: .88rem; margin-top: .4rem; }
@media (max-width: 50rem) { .pictures { grid-template-columns: minmax(0, 1fr); } }
</style>
</head>
<body>
<h1>Did distillation help?</h1>
<p class="answer $mood">$headline</p>
$causes
$table
<p class="note">$method</p>
$notes
$pictures
$more
$runs
</body>
</html>
""")
