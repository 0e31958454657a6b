"""A plan as one static HTML file without scripts, network access or font files."""

from embridge.reporting.report import check_installed, report_page, write_report

__all__ = ["check_installed", "report_page", "write_report"]
