"""Where a request may go: accounts, the catalogue of models, the pure choice. Knows no task and no team's secret."""
