"""HTTP in, HTTP out: parse, call one function, answer. No SQL, no decision about a task."""
