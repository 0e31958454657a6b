"""A plan as one static HTML file that needs nothing else: no script, no network, no font."""

from embridge.reporting.report import check_installed, report_page, write_report

__all__ = ["check_installed", "report_page", "write_report"]
