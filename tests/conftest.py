"""How much Hypothesis tries: profiles dev (the default), ci and intense.

    HYPOTHESIS_PROFILE=intense pytest tests/backends/test_random_programs.py

No profile has a deadline: the first example of a test may compile kernels.
"""

import os
import signal

from hypothesis import HealthCheck, settings

settings.register_profile("dev", max_examples=20, deadline=None)
settings.register_profile(
    "ci", max_examples=20, deadline=None, derandomize=True, print_blob=True
)
settings.register_profile(
    "intense",
    max_examples=1000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "dev"))

# A shell starts background jobs with Ctrl-C ignored; the tests of it would fail there.
signal.signal(signal.SIGINT, signal.default_int_handler)
