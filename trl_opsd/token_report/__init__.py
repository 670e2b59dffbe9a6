# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Token report: what the teacher teaches, token by token."""
