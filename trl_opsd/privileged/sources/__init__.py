# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""One file per source of privileged contexts, by its name in recipes."""
