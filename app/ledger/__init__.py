"""What each team used: lines, sums, reports. Append only. Knows no HTTP and no file."""
