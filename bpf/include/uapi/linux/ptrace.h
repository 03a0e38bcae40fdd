/* bcc asks for it; nothing of it is used. */
