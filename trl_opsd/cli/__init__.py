# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""The command line."""

import logging


# At its import bitsandbytes warns that a kernel of the Hub is not here, without which it does as well
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
