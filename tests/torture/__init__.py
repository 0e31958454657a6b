"""Kills, mutations, races and full disks, by the thousand: ``make torture``, or ``python -m tests.torture --help``."""
