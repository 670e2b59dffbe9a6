# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Teacher prompts: from a view to the token ids that the student's own completion follows."""
