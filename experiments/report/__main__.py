"""Writes experiments/README.md, and the measured cells of docs/methods.md."""

from experiments import records, report

RESULTS = report.HERE / "results"

records.write(report.HERE / "README.md", report.page(RESULTS).encode())
table = report.HERE.parent / "docs" / "methods.md"
records.write(table, report.filled(table.read_text(), RESULTS).encode())
