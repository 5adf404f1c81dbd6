"""What holds for every test."""

import os

# Read when torch is loaded. The learners of the tests are too small for threads to share, and those
# that spin while they wait take the cores from the other processes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
