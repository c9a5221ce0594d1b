"""What every test has, wherever it is: see tests/support/fixtures.py."""

pytest_plugins = ["tests.support.fixtures"]
