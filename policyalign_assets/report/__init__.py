"""The report: `build.build_report` computes it, `render.write_report` writes its files.

`release.decide` decides, from the cases and the checkpoint's bytes, whether there is a release.
"""
