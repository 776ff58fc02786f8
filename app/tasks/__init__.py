"""The life of a task: accept, submit, dispatch, poll, outcome, finish, rescue. Knows no HTTP of ours and no storage."""
