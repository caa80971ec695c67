"""Owns how the report looks: one Jinja template with its style sheet, everything escaped.

What it says comes from `report`; the drawings come from `report_plots`.
"""

import jinja2
from markupsafe import Markup

_STYLE = """
:root { color-scheme: light dark; --back: #f6f7f9; --card: #fff; --text: #1b2330; --soft: #5d6878;
  --rule: #dfe3ea; --c0: #2f6bde; --c1: #d9730d; --c2: #0d8f6f; --c3: #c93a55; --c4: #7d52d1;
  --good: #0d7a5c; --bad: #b3263f; }
@media (prefers-color-scheme: dark) {
  :root { --back: #11151c; --card: #1a202b; --text: #e6eaf1; --soft: #98a3b5; --rule: #2d3645;
    --c0: #6d9df5; --c1: #f0a04b; --c2: #3fc7a0; --c3: #f0788f; --c4: #ab8cf0;
    --good: #4fd1a9; --bad: #f58aa0; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--text);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; }
main { max-width: 1200px; margin: 0 auto; padding: 28px 16px 64px; }
h1 { font-size: 1.75rem; line-height: 1.2; margin: 0 0 4px; }
h2 { font-size: 1.15rem; margin: 0; display: inline; }
section > details > summary { padding: 12px 0; border-top: 1px solid var(--rule); }
.lead { font-size: 1.15rem; line-height: 1.45; margin: 16px 0; padding-left: 20px; max-width: 70ch; }
.lead li { margin: 6px 0; }
h3 { font-size: .95rem; margin: 0 0 8px; }
p { margin: 4px 0 12px; max-width: 75ch; } .soft, figcaption { color: var(--soft); }
figcaption, .small { font-size: .85rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(200px, 1fr)); gap: 12px;
  margin: 20px 0; }
.card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px;
  padding: 14px 16px; min-width: 0; }
.tile b { display: block; font-size: 1.5rem; line-height: 1.25; } .tile span { font-size: .85rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr));
  gap: 16px; margin: 12px 0; }
.plots.one { grid-template-columns: minmax(0, 480px); }
figure { margin: 0; } svg { display: block; width: 100%; max-width: 440px; height: auto; }
svg text { fill: var(--text); font-size: 11.5px; } svg text.tick { fill: var(--soft); }
svg text.over { paint-order: stroke; stroke: var(--card); stroke-width: 4px; }
svg text.strong { font-weight: 600; font-size: 12px; paint-order: stroke; stroke: var(--card);
  stroke-width: 5px; }
.line { fill: none; stroke-width: 1.8; stroke-linejoin: round; } .dot { stroke: var(--card); }
.outline { fill: none; stroke: var(--text); stroke-width: 2.5; }
.band { opacity: .18; } .band.c0 { fill: var(--c0); } .band.c1 { fill: var(--c1); }
.band.c2 { fill: var(--c2); } .band.c3 { fill: var(--c3); } .band.c4 { fill: var(--c4); }
.path { fill: none; stroke: var(--soft); stroke-dasharray: 3 3; }
.grid { stroke: var(--rule); } .axis { stroke: var(--soft); } .error { stroke: var(--soft); }
.whisker { stroke: var(--text); opacity: .75; } .mark { stroke: var(--text); stroke-width: 1.5;
  stroke-dasharray: 2 2; }
.line.c0 { stroke: var(--c0); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.line.c3 { stroke: var(--c3); } .line.c4 { stroke: var(--c4); }
.bar.c0, .dot.c0 { fill: var(--c0); } .bar.c1, .dot.c1 { fill: var(--c1); }
.bar.c2, .dot.c2 { fill: var(--c2); } .bar.c3, .dot.c3 { fill: var(--c3); }
.bar.c4, .dot.c4 { fill: var(--c4); }
.hollow { fill: var(--card); stroke-width: 2; } .hollow.c0 { stroke: var(--c0); }
.hollow.c1 { stroke: var(--c1); } .hollow.c2 { stroke: var(--c2); }
.hollow.c3 { stroke: var(--c3); } .hollow.c4 { stroke: var(--c4); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: .85rem; margin: 4px 0 8px; }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px;
  margin-right: 5px; }
.legend .c0 { background: var(--c0); } .legend .c1 { background: var(--c1); }
.legend .c2 { background: var(--c2); } .legend .c3 { background: var(--c3); }
.legend .c4 { background: var(--c4); }
.scroll { overflow-x: auto; margin: 12px 0; }
table { border-collapse: collapse; width: 100%; font-size: .9rem; }
th, td { text-align: left; padding: 6px 10px; border-bottom: 1px solid var(--rule);
  vertical-align: top; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; }
tr:last-child td { border-bottom: 0; }
td:first-child { min-width: 7em; } td.num { min-width: 0; white-space: nowrap; }
td { overflow-wrap: anywhere; } td.num, th { overflow-wrap: normal; }
.num { text-align: right; font-variant-numeric: tabular-nums; }
td small { color: var(--soft); white-space: nowrap; }
/* On a narrow screen a row is a small list, its header's names before its values. */
@media (max-width: 600px) { .card { padding: 8px; } thead { display: none; }
  tr { display: flex; flex-wrap: wrap; gap: 2px 14px; padding: 6px 0;
    border-bottom: 1px solid var(--rule); }
  td { border: 0; padding: 0; } td.num { white-space: normal; } td:first-child { flex-basis: 100%; font-weight: 600; }
  td:not(:first-child)::before { content: attr(data-name) " "; color: var(--soft); font-weight: 400; }
  pre { white-space: pre-wrap; overflow-wrap: anywhere; } }
.good { color: var(--good); } .bad { color: var(--bad); }
pre { background: var(--back); border: 1px solid var(--rule); border-radius: 8px; padding: 12px;
  margin: 8px 0; overflow-x: auto; font-size: .83rem; line-height: 1.45; }
summary { cursor: pointer; } ul { padding-left: 20px; margin: 8px 0; }
footer { margin-top: 40px; font-size: .85rem; color: var(--soft); }
"""

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>{{ style }}</style>
</head>
<body><main>
{%- macro table(content) %}
<div class="card scroll"><table>
{% if content.header | select | list %}<thead><tr>{% for name in content.header %}
<th{% if loop.index0 >= content.text_columns %} class="num"{% endif %}>{{ name }}</th>
{%- endfor %}</tr></thead>
{% endif %}<tbody>{% for row in content.rows %}
<tr>{% for cell in row %}<td data-name="{{ content.header[loop.index0] | default("") }}" class="
{%- if loop.index0 >= content.text_columns %}num {% endif %}{{ cell.tone }}">
{{- cell.text }}{% if cell.small %} <small>{{ cell.small }}</small>{% endif %}</td>
{%- endfor %}</tr>{% endfor %}
</tbody></table></div>
{%- endmacro %}
{%- macro figure(plot) %}
<figure class="card"><h3>{{ plot.title }}</h3>{{ plot.svg }}
{%- if plot.caption %}<figcaption>{{ plot.caption }}</figcaption>{% endif %}</figure>
{%- endmacro %}
<h1>{{ title }}</h1>
<p class="soft">{{ subtitle }}</p>
{% if tiles %}<div class="tiles">{% for tile in tiles %}
<div class="card tile"><span class="soft">{{ tile.name }}</span><b class="{{ tile.tone }}">
{{- tile.value }}</b><span class="soft">{{ tile.note }}</span></div>{% endfor %}
</div>{% endif %}
{% if lead %}<ul class="lead">{% for sentence in lead %}
<li>{{ sentence }}</li>{% endfor %}</ul>
{% endif %}
{%- if lead_plots %}<div class="plots one">{% for plot in lead_plots %}{{ figure(plot) }}{% endfor %}</div>
{% endif %}
{% for section in sections %}
<section><details{% if not lead or loop.first %} open{% endif %}><summary><h2>{{ section.title }}</h2></summary>
{% for paragraph in section.paragraphs %}<p class="soft">{{ paragraph }}</p>
{% endfor %}
{%- if section.bullets %}<ul>{% for bullet in section.bullets %}
<li>{{ bullet }}</li>{% endfor %}</ul>
{% endif %}
{%- if section.legend %}<div class="legend">{% for name in section.legend %}
<span><i class="c{{ loop.index0 % 5 }}"></i>{{ name }}</span>{% endfor %}</div>
{% endif %}
{%- if section.plots %}<div class="plots">{% for plot in section.plots %}{{ figure(plot) }}{% endfor %}
</div>
{% endif %}
{%- for content in section.tables %}{{ table(content) }}{% endfor %}
{{- section.get("markup", "") }}
{%- for block in section.blocks %}
{% if block.folded %}<details class="card"><summary>{{ block.title }}</summary>
<pre>{{ block.text }}</pre></details>
{%- else %}<pre>{{ block.text }}</pre>{% endif %}{% endfor %}
</details></section>
{% endfor %}
<footer>{{ footer }}</footer>
</main></body></html>
"""


def render_page(content: dict, more_style: str = "") -> str:
    """Fills the template.

    Args:
        content: title, subtitle, tiles or lead (sentences) and lead_plots, sections (folded, where there is a lead) and
            footer as `report` builds them; a plot's
            `svg` and a section's `markup` (if it has one) are markup, every other string is text
            and escaped.
        more_style: rules for that markup, after the page's own.

    Returns:
        One HTML document that refers to nothing outside itself.
    """

    def marked(plots):
        return [{**plot, "svg": Markup(plot["svg"])} for plot in plots]

    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    sections = []
    for section in content["sections"]:
        markup = Markup(section.get("markup", ""))
        sections.append({**section, "plots": marked(section["plots"]), "markup": markup})
    template = environment.from_string(_TEMPLATE)
    shown = {"lead_plots": marked(content.get("lead_plots", ())), "sections": sections}
    return template.render(
        {"tiles": (), "lead": (), **content, **shown, "style": Markup(_STYLE + more_style)}
    )
