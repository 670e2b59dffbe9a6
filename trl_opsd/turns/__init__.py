# Copyright 2026 The trl_opsd authors. Licensed under the Apache License, Version 2.0.

"""Turns: rows of a group in roles, each of which says under which prompt which text is trained."""
