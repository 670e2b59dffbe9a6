# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""What a method is made of, how it is found, and how it works in a run."""
