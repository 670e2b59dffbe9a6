# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Systems of several trainings in a row: sampled data sets, pruned models, lists of phases."""
