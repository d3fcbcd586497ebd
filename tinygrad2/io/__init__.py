"""Files: written atomically, checked before they are believed. Containers of arrays."""
