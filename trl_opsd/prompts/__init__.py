# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""From a view to token ids that end in the student's own completion."""
