"""The evaluation report: `build.build_report` computes it, `render.write_report` writes it as JSON, Parquet and HTML."""
