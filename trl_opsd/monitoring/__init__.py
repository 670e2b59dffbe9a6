# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Metrics, alerts and leaks of the privileged context."""
