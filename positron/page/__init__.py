"""The dashboard: the runs below a folder as a local page. `vendor/` is uPlot, unchanged; see its SOURCE file."""
