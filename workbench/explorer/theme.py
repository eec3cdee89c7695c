"""The look: one style sheet on JupyterLab's own variables, so that the light and the dark theme both fit, even when switched."""

from __future__ import annotations

CSS = """
.wb {
  --wb-text: var(--jp-ui-font-color1, #222); --wb-soft: var(--jp-ui-font-color2, #666);
  --wb-line: var(--jp-border-color2, #ccc);
  --wb-bad: #b3261e; --wb-good: #1b6e3c; --wb-warn: #8a5a00;
  --wb-link: var(--jp-content-link-color, #0b63c5);
  color: var(--wb-text); container-type: inline-size; padding: 4px 2px 8px; overflow-anchor: none;
}
[data-jp-theme-light="false"] .wb { --wb-bad: #ff8a80; --wb-good: #7ddc9f; --wb-warn: #f2c063; color-scheme: dark;
  --jp-widgets-dropdown-arrow: url("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 18 18'%3E%3Cpath \
d='M5 7l4 4 4-4' fill='none' stroke='%23ddd' stroke-width='2'/%3E%3C/svg%3E"); }
[data-jp-theme-light="false"] .wb select { background-image: var(--jp-widgets-dropdown-arrow); }
[data-jp-theme-light="false"] .wb select[size] { background-image: none; }
.wb .wb-page { display: grid; grid-template-columns: minmax(0, 1fr); gap: 14px 28px; overflow: visible; }
@container (min-width: 780px) { .wb .wb-page { grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 14px 20px; } }
@container (min-width: 1200px) { .wb .wb-page { grid-template-columns: minmax(0, 5fr) minmax(0, 6fr); gap: 14px 28px; } }
.wb .wb-page > *, .wb .widget-vbox, .wb .widget-hbox, .wb .wb-fields > * { min-width: 0; max-width: 100%; }
.wb .wb-grid, .wb .wb-fields { display: grid; gap: 8px 20px; overflow: visible; align-items: start; }
.wb .wb-grid { grid-template-columns: repeat(auto-fit, minmax(170px, 1fr)); }
.wb .wb-fields { grid-template-columns: repeat(auto-fill, minmax(148px, 1fr)); }
.wb .wb-grid > .jupyter-widgets { width: auto; margin: 0; }
.wb h4 { margin: 12px 0 2px; font-size: 13px; font-weight: 600; color: var(--wb-text); line-height: 1.5; }
.wb .widget-html, .wb .widget-html > .widget-html-content { height: auto; }
.wb .widget-html { margin: 0; }
.wb .widget-box, .wb .widget-hbox, .wb .widget-vbox { overflow: visible; }
.wb .wb-field .widget-hbox { align-items: flex-end; gap: 6px; }
.wb .wb-grid > *, .wb .wb-field .widget-text, .wb .wb-field .widget-dropdown {
  flex-flow: column nowrap; align-items: stretch; height: auto; }
.wb .wb-field .widget-text, .wb .wb-field .widget-dropdown { flex: 1 1 0; width: auto; min-width: 0; margin: 0; }
.wb .wb-grid .widget-label, .wb .wb-field .widget-text .widget-label, .wb .wb-field .widget-dropdown .widget-label {
  width: auto !important; height: 20px; line-height: 20px; text-align: left; color: var(--wb-text); }
.wb .wb-field .widget-text .widget-label, .wb .wb-field .widget-dropdown .widget-label,
.wb .wb-field .widget-checkbox .widget-label-basic { font-family: var(--jp-code-font-family, monospace); font-size: 12px; }
.wb .wb-grid select, .wb .wb-field select, .wb .wb-field input[type="text"] { width: 100%; min-width: 0; box-sizing: border-box;
  height: 26px; flex: none; }
.wb .wb-field .widget-text .widget-label { overflow: visible; white-space: nowrap; }
.wb .wb-field .widget-checkbox { width: auto; margin: 0; }
.wb .wb-slider { flex: 0 0 72px !important; width: 72px; margin: 0 8px 0 6px; height: 26px; }
.wb .wb-slider .widget-label,
.wb .wb-text .widget-label { position: absolute; width: 1px !important; height: 1px; overflow: hidden; clip-path: inset(50%); }
.wb .wb-note, .wb .wb-note .widget-html-content { color: var(--wb-soft); font-size: 11px; line-height: 1.35; height: auto; }
.wb .wb-note i { font-style: normal; white-space: nowrap; }
.wb .wb-note { margin: 1px 0 0 !important; width: auto; }
.wb .wb-about { margin-top: 6px; }
.wb .wb-about .widget-html-content { line-height: 1.45; font-size: 12.5px; height: auto; }
.wb .wb-bar { display: flex; flex-flow: row wrap; gap: 6px; align-items: center; }
.wb .wb-bar h4 { margin: 0; }
.wb .wb-bar:has(h4) { margin-top: 10px; }
.wb .wb-bar .jupyter-button { width: auto; margin: 0; padding: 0 14px; }
.wb .wb-bar .wb-steady { min-width: 104px; }
.wb .wb-bar .widget-dropdown, .wb .wb-bar .widget-checkbox { width: auto; margin: 0 8px 0 0; }
.wb .wb-bar .widget-dropdown .widget-label { width: auto !important; }
.wb .wb-bar select { min-width: 110px; max-width: 260px; }
.wb .wb-bar + .wb-bar { margin-top: 6px; }
.wb .wb-status .widget-html-content { line-height: 26px; }
.wb .wb-head { margin-bottom: 6px; }
.wb .wb-head > * + * { margin-top: 8px; }
.wb progress { width: 180px; height: 10px; vertical-align: middle; accent-color: var(--jp-brand-color1, #1976d2); }
.wb .wb-bad { color: var(--wb-bad); font-weight: 600; }
.wb .wb-good { color: var(--wb-good); font-weight: 600; }
.wb .wb-warn { color: var(--wb-warn); font-weight: 600; }
.wb a { color: var(--wb-link); text-decoration: underline; }
.wb .wb-scroll { overflow-x: auto; }
.wb td:nth-child(2) { min-width: 120px; }
.wb tr.wb-more td { border-bottom: none; padding-bottom: 0; }
.wb table { border-collapse: collapse; font-size: 12px; width: 100%; margin: 0; }
.wb th, .wb td { text-align: left; padding: 3px 12px 3px 0; border-bottom: 1px solid var(--wb-line); vertical-align: baseline;
  line-height: 1.4; }
.wb th { color: var(--wb-soft); font-weight: 600; }
.wb .wb-scroll th { white-space: nowrap; }
.wb .wb-scroll th:last-child, .wb .wb-scroll td:last-child { padding-right: 0; }
@container (max-width: 1000px) { .wb .wb-scroll th, .wb .wb-scroll td { padding-right: 7px; }
  .wb .wb-scroll td:nth-child(2) { min-width: 90px; } }
.wb td.wb-num, .wb th.wb-num { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.wb td code { font-size: 11px; color: var(--wb-soft); background: none; }
.wb textarea { font-family: var(--jp-code-font-family, monospace); font-size: 12px; line-height: 1.4; }
.wb .widget-textarea { width: 100%; margin: 0; }
.wb .widget-tab > .widget-tab-contents { padding: 6px; }
.wb .wb-field .widget-checkbox { height: 22px; }
.wb .wb-curves { overflow: hidden; }
.wb .js-plotly-plot text { fill: var(--wb-text) !important; }
.wb .js-plotly-plot .gridlayer path { stroke: var(--wb-line) !important; stroke-opacity: 0.55 !important; }
.wb .js-plotly-plot .xlines-above, .wb .js-plotly-plot .ylines-above,
.wb .js-plotly-plot path.ticks { stroke: var(--wb-soft) !important; }
.wb .js-plotly-plot .hoverlayer .hovertext text { fill: #fff !important; }
.wb .js-plotly-plot .modebar, .wb .js-plotly-plot .modebar-group { background: transparent !important; }
.wb .js-plotly-plot .modebar-btn .icon path { fill: var(--wb-soft) !important; }
.wb .wb-seek { margin-bottom: 6px; }
.wb .wb-seek .widget-text, .wb .wb-seek .widget-select { width: auto; margin: 0 0 4px; }
.wb .wb-seek .widget-select { height: auto; }
.wb .wb-seek .widget-label { width: auto; text-align: left; }
.wb .wb-seek select, .wb .wb-list select { height: auto; }
.wb .wb-list { width: 100%; height: auto; margin: 4px 0; }
.wb .wb-list select { font-family: var(--jp-code-font-family, monospace); font-size: 12px; width: 100%; }
.wb .wb-cost .widget-html-content { line-height: 1.45; font-size: 12.5px; height: auto; color: var(--wb-soft); min-height: 37px; }
@container (min-width: 1100px) { .wb .wb-cost .widget-html-content { min-height: 18px; } }
.wb .wb-more-button { width: auto; margin: 8px 0 4px; padding: 0 12px; background: none; border: 1px solid var(--wb-line);
  color: var(--wb-text); }
.wb .wb-copy { display: flex; gap: 8px; align-items: center; margin: 0; }
.wb .wb-panes { margin: 8px 0 0; }
.wb .wb-panes .jupyter-button { width: auto; padding: 0 14px; margin-left: 0; }
.wb .wb-panes .jupyter-button.mod-active { background: var(--jp-brand-color1, #1976d2);
  color: var(--jp-ui-inverse-font-color1, #fff) !important; }
.wb .wb-bar .widget-text { width: auto; margin: 0 8px 0 0; }
.wb .wb-bar .widget-text .widget-label { width: auto !important; }
.wb .wb-bar input[type="text"] { min-width: 90px; }
.wb .wb-table caption { text-align: left; color: var(--wb-soft); padding-bottom: 4px; caption-side: top;
  white-space: normal; line-height: 1.4; max-width: 94cqw; }
@container (min-width: 780px) { .wb .wb-table caption { max-width: 52cqw; } }
.wb .wb-table .wide thead th:first-child, .wb .wb-table .wide tbody th { position: sticky; left: 0; z-index: 1;
  background: var(--jp-layout-color0, Canvas); }
.wb .wb-table + .wb-bar { margin-top: 8px; }
.wb .wb-head > .wb-note { padding-top: 5px; }
.wb .wb-page .wb-bar + .wb-note { margin-top: 8px !important; }
.wb .wb-table .wide { overflow-x: auto; max-width: 100%; }
.wb .widget-html, .wb .widget-html-content { min-width: 0; max-width: 100%; }
.wb .wb-table ul { margin: 4px 0; padding-left: 18px; } .wb .wb-table li { white-space: normal; }
.wb .wb-table .wide td { white-space: nowrap; }
.wb .wb-table .number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
.wb .wb-table .wide thead th { vertical-align: bottom; }
.wb .wb-table th.number { white-space: normal; min-width: 64px; }
.wb .wb-table tbody th { color: var(--wb-text); }
.wb .wb-table p, .wb .wb-table li { font-size: 12px; line-height: 1.4; color: var(--wb-soft); margin: 2px 0; }
.wb .wb-plots { width: 100%; margin: 0; }
.wb .wb-plots .jp-OutputPrompt { display: none; }
.wb .wb-plots .jp-OutputArea-output { overflow: hidden; padding: 0; }
.wb .wb-plots .wb-caption { color: var(--wb-soft); font-size: 12px; line-height: 1.4; margin: 4px 0 16px; }
.wb button:focus-visible, .wb select:focus-visible, .wb input:focus-visible, .wb textarea:focus-visible, .wb a:focus-visible,
.wb .noUi-handle:focus-visible, .wb [tabindex]:focus-visible {
  outline: 2px solid var(--wb-text) !important;
  outline-offset: 2px; }
.wb .wb-sr { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
"""

TONES = {"finished": "wb-good", "failed": "wb-bad", "diverged": "wb-bad", "stopped": "wb-warn", "stopping": "wb-warn",
         "paused": "wb-warn", "pausing": "wb-warn"}
"""The class of each status word that is coloured; the word itself is always written."""
