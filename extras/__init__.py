"""Tools that use the scripts and the kit, and that neither needs: each can be deleted."""
