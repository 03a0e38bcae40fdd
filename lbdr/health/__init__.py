"""Who may serve: checks of real servers, and the rules that make decisions of what they find."""
