// Package pushrules holds a user's push rules and says what they make of an event (CS API, Push Notifications). It is
// pure: what must be known of the room is an argument.
package pushrules
