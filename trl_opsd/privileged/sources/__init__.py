# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Sources of privileged contexts: a class with a `NAME` is found by it in recipes."""
