"""Generation with drafts: learned inputs let a frozen model propose several tokens, and its next pass verifies them."""
