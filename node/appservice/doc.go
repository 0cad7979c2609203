// Package appservice is the homeserver's side of the Application Service API: registrations and their namespaces (registration.go,
// services.go), requests to the services and the queries that they answer (request.go, query.go), and the events that they are sent
// (sender.go, compose.go). What they may do in the client-server API is said there.
package appservice
