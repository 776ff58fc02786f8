"""Files to the team's storage and back: destinations, copies, links. Knows no upstream call but the file's own link."""
