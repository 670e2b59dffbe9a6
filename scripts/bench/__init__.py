# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What the three benchmarks share. `make bench` runs them."""
