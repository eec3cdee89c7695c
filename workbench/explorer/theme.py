"""The look: one style sheet on JupyterLab's own variables, so that the light and the dark theme both fit, even when switched."""

from __future__ import annotations

CSS = """
.wb {
  --wb-text: var(--jp-ui-font-color1, #222); --wb-soft: var(--jp-ui-font-color2, #666);
  --wb-line: var(--jp-border-color2, #ccc);
  --wb-bad: #b3261e; --wb-good: #1b6e3c; --wb-warn: #8a5a00;
  --wb-link: var(--jp-content-link-color, #0b63c5);
  color: var(--wb-text); container-type: inline-size; padding: 4px 2px 8px;
}
[data-jp-theme-light="false"] .wb { --wb-bad: #ff8a80; --wb-good: #7ddc9f; --wb-warn: #f2c063; color-scheme: dark; }
.wb .wb-page { display: grid; grid-template-columns: minmax(0, 1fr); gap: 14px 28px; overflow: visible; }
@container (min-width: 1080px) { .wb .wb-page { grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); } }
.wb .wb-page > *, .wb .widget-vbox, .wb .widget-hbox, .wb .wb-fields > * { min-width: 0; max-width: 100%; }
.wb .wb-grid, .wb .wb-fields { display: grid; gap: 6px 20px; overflow: visible; align-items: start; }
.wb .wb-grid { grid-template-columns: repeat(auto-fit, minmax(190px, 1fr)); }
.wb .wb-fields { grid-template-columns: repeat(auto-fill, minmax(250px, 1fr)); }
.wb .wb-grid > .jupyter-widgets { width: auto; margin: 0; }
.wb h4 { margin: 10px 0 4px; font-size: 12px; font-weight: 600; letter-spacing: 0.02em; color: var(--wb-soft); }
.wb .widget-hbox, .wb .widget-vbox { overflow: visible; }
.wb .wb-field .widget-hbox { align-items: center; gap: 8px; }
.wb .wb-field .widget-text, .wb .wb-field .widget-dropdown { flex: 1 1 0; width: auto; margin: 0; }
.wb .wb-field .widget-text .widget-label, .wb .wb-field .widget-dropdown .widget-label {
  width: 104px !important; flex: 0 0 104px; text-align: left; overflow: hidden; text-overflow: ellipsis; color: var(--wb-text);
  font-family: var(--jp-code-font-family, monospace); font-size: 12px; }
.wb .wb-field .widget-text input, .wb .wb-field select { min-width: 0; }
.wb .wb-field .widget-checkbox { width: auto; margin: 0; }
.wb .wb-field .widget-checkbox .widget-label-basic { font-family: var(--jp-code-font-family, monospace); font-size: 12px; }
.wb .wb-slider { flex: 0 0 72px; width: 72px; margin: 0 8px 0 4px; }
.wb .wb-slider .widget-label { position: absolute; width: 1px !important; height: 1px; overflow: hidden; clip-path: inset(50%); }
.wb .wb-note, .wb .wb-note .widget-html-content { color: var(--wb-soft); font-size: 11px; line-height: 1.35; height: auto; }
.wb .wb-note { margin: 1px 0 0 !important; width: auto; }
.wb .wb-about .widget-html-content { line-height: 1.45; font-size: 12.5px; height: auto; }
.wb .wb-bar { display: flex; flex-flow: row wrap; gap: 6px; align-items: center; }
.wb .wb-bar .jupyter-button { width: auto; margin: 0; padding: 0 14px; }
.wb .wb-bar .widget-dropdown, .wb .wb-bar .widget-checkbox { width: auto; margin: 0 8px 0 0; }
.wb .wb-bar .widget-dropdown .widget-label { width: auto !important; }
.wb .wb-bar select { min-width: 150px; }
.wb .wb-status .widget-html-content { height: auto; line-height: 1.45; }
.wb progress { width: 180px; height: 10px; vertical-align: middle; accent-color: var(--jp-brand-color1, #1976d2); }
.wb .wb-bad { color: var(--wb-bad); font-weight: 600; }
.wb .wb-good { color: var(--wb-good); font-weight: 600; }
.wb .wb-warn { color: var(--wb-warn); font-weight: 600; }
.wb a { color: var(--wb-link); text-decoration: underline; }
.wb .wb-table .widget-html-content { height: auto; overflow-x: auto; }
.wb table { border-collapse: collapse; font-size: 12px; width: 100%; margin: 0; }
.wb th, .wb td { text-align: left; padding: 3px 12px 3px 0; border-bottom: 1px solid var(--wb-line); vertical-align: top;
  line-height: 1.4; }
.wb th { color: var(--wb-soft); font-weight: 600; white-space: nowrap; }
.wb td.wb-num, .wb th.wb-num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wb td code { font-size: 11px; color: var(--wb-soft); background: none; }
.wb textarea { font-family: var(--jp-code-font-family, monospace); font-size: 12px; line-height: 1.4; }
.wb .widget-textarea { width: 100%; margin: 0; }
.wb .wb-curves { overflow: hidden; }
.wb .js-plotly-plot text { fill: var(--wb-text) !important; }
.wb .js-plotly-plot .gridlayer path { stroke: var(--wb-line) !important; stroke-opacity: 0.55; }
.wb .js-plotly-plot .xlines-above, .wb .js-plotly-plot .ylines-above,
.wb .js-plotly-plot .xtick, .wb .js-plotly-plot .ytick { stroke: var(--wb-soft) !important; }
.wb .js-plotly-plot .hoverlayer .hovertext text { fill: #fff !important; }
.wb .js-plotly-plot .modebar { background: transparent !important; }
.wb .js-plotly-plot .modebar-btn .icon path { fill: var(--wb-soft) !important; }
.wb .wb-sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
"""

TONES = {"finished": "wb-good", "failed": "wb-bad", "diverged": "wb-bad", "stopped": "wb-warn", "stopping": "wb-warn",
         "paused": "wb-warn", "pausing": "wb-warn"}
"""The class of each status word that is coloured; the word itself is always written."""
