"""consecution beside other tools: the same work, checked answers, interleaved runs. See ../README.md."""
