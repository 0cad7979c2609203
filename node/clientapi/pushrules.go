package clientapi

import (
	"encoding/json"
	"errors"
	"net/http"

	"github.com/plexus-p2p/plexus/eventgraph"
	"github.com/plexus-p2p/plexus/node/pushrules"
	"github.com/plexus-p2p/plexus/store"
)

// Push rules are stored as the account data m.push_rules, so that /sync shows each change.

func (a *API) pushRuleRoutes() {
	const global = "/_matrix/client/v3/pushrules/global"
	const rule = global + "/{kind}/{ruleId}"
	a.route("GET", "/_matrix/client/v3/pushrules", authed, a.getPushRules)
	a.route("GET", "/_matrix/client/v3/pushrules/", authed, a.getPushRules)
	a.route("GET", global, authed, a.getGlobalPushRules)
	a.route("GET", global+"/", authed, a.getGlobalPushRules)
	a.route("GET", rule, authed, a.getPushRule)
	a.route("PUT", rule, authed, a.putPushRule)
	a.route("DELETE", rule, authed, a.deletePushRule)
	a.route("GET", rule+"/enabled", authed, a.getPushRuleEnabled)
	a.route("PUT", rule+"/enabled", authed, a.putPushRuleEnabled)
	a.route("GET", rule+"/actions", authed, a.getPushRuleActions)
	a.route("PUT", rule+"/actions", authed, a.putPushRuleActions)
}

// pushRulesContent is the content of m.push_rules.
type pushRulesContent struct {
	Global *pushrules.Ruleset `json:"global"`
}

// readPushRules reads the user's rules, the predefined ones level with this version of plexus.
func readPushRules(r *store.Reader, user eventgraph.UserID) (*pushrules.Ruleset, error) {
	data, err := r.AccountData(user, "", typePushRules)
	if errors.Is(err, store.ErrNotFound) {
		return pushrules.Default(string(user)), nil
	}
	if err != nil {
		return nil, err
	}
	var content pushRulesContent
	if err := json.Unmarshal(data.Content, &content); err != nil {
		return nil, err
	}
	if content.Global == nil {
		content.Global = &pushrules.Ruleset{}
	}
	content.Global.Complete(string(user))
	return content.Global, nil
}

// pushRules is readPushRules on a snapshot of its own.
func (a *API) pushRules(user eventgraph.UserID) (rules *pushrules.Ruleset, err error) {
	err = a.Store.View(func(r *store.Reader) (err error) {
		rules, err = readPushRules(r, user)
		return err
	})
	return rules, err
}

// putPushRules writes the rules in the given transaction.
func (a *API) putPushRules(tx *store.Tx, user eventgraph.UserID, rules *pushrules.Ruleset) error {
	content, err := json.Marshal(pushRulesContent{rules})
	if err != nil {
		return err
	}
	_, err = tx.PutAccountData(user, "", &store.AccountData{Type: typePushRules, Content: content, Origin: a.Peer})
	return err
}

// changePushRules reads, changes and writes the caller's rules in one transaction.
func (a *API) changePushRules(q *request, change func(*pushrules.Ruleset) error) (any, error) {
	_, err := a.Store.Update(q.Context(), func(tx *store.Tx) error {
		rules, err := readPushRules(&tx.Reader, q.user)
		if err != nil {
			return err
		}
		if err := change(rules); err != nil {
			return err
		}
		return a.putPushRules(tx, q.user, rules)
	})
	return nil, pushRuleError(err)
}

// pushRuleError gives errors of package pushrules the spec's form.
func pushRuleError(err error) error {
	switch {
	case errors.Is(err, pushrules.ErrNotFound):
		return notFound("There is no such push rule.")
	case errors.Is(err, pushrules.ErrInvalid):
		return invalidParam(err.Error())
	case errors.Is(err, pushrules.ErrPosition):
		return fail(http.StatusBadRequest, "M_UNKNOWN", err.Error())
	case errors.Is(err, pushrules.ErrFull):
		return forbidden(err.Error())
	}
	return accountDataFull(err)
}

// getPushRules is GET /pushrules/.
func (a *API) getPushRules(q *request) (any, error) {
	rules, err := a.pushRules(q.user)
	return pushRulesContent{rules}, err
}

// getGlobalPushRules is GET /pushrules/global/.
func (a *API) getGlobalPushRules(q *request) (any, error) {
	rules, err := a.pushRules(q.user)
	return rules, err
}

// pushRule reads the rule that the path names.
func (a *API) pushRule(q *request) (*pushrules.Rule, error) {
	rules, err := a.pushRules(q.user)
	if err != nil {
		return nil, err
	}
	rule, err := rules.Find(pushrules.Kind(q.path("kind")), q.path("ruleId"))
	return rule, pushRuleError(err)
}

// getPushRule is GET /pushrules/global/{kind}/{ruleId}.
func (a *API) getPushRule(q *request) (any, error) {
	rule, err := a.pushRule(q)
	return rule, err
}

// getPushRuleEnabled is GET …/enabled.
func (a *API) getPushRuleEnabled(q *request) (any, error) {
	rule, err := a.pushRule(q)
	if err != nil {
		return nil, err
	}
	return map[string]bool{"enabled": rule.Enabled}, nil
}

// getPushRuleActions is GET …/actions.
func (a *API) getPushRuleActions(q *request) (any, error) {
	rule, err := a.pushRule(q)
	if err != nil {
		return nil, err
	}
	return map[string]any{"actions": rule.Actions}, nil
}

// putPushRule is PUT /pushrules/global/{kind}/{ruleId}.
func (a *API) putPushRule(q *request) (any, error) {
	var rule pushrules.Rule
	if err := q.decode(&rule); err != nil {
		return nil, err
	}
	rule.ID = q.path("ruleId")
	if rule.Actions == nil {
		return nil, missingParam("actions is missing.")
	}
	query := q.URL.Query()
	return a.changePushRules(q, func(rules *pushrules.Ruleset) error {
		return rules.Put(pushrules.Kind(q.path("kind")), rule, query.Get("before"), query.Get("after"))
	})
}

// deletePushRule is DELETE /pushrules/global/{kind}/{ruleId}.
func (a *API) deletePushRule(q *request) (any, error) {
	return a.changePushRules(q, func(rules *pushrules.Ruleset) error {
		return rules.Delete(pushrules.Kind(q.path("kind")), q.path("ruleId"))
	})
}

// putPushRuleEnabled is PUT …/enabled.
func (a *API) putPushRuleEnabled(q *request) (any, error) {
	var body struct {
		Enabled *bool `json:"enabled"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.Enabled == nil {
		return nil, missingParam("enabled is missing.")
	}
	return a.changePushRules(q, func(rules *pushrules.Ruleset) error {
		rule, err := rules.Find(pushrules.Kind(q.path("kind")), q.path("ruleId"))
		if err == nil {
			rule.Enabled = *body.Enabled
		}
		return err
	})
}

// putPushRuleActions is PUT …/actions.
func (a *API) putPushRuleActions(q *request) (any, error) {
	var body struct {
		Actions []pushrules.Action `json:"actions"`
	}
	if err := q.decode(&body); err != nil {
		return nil, err
	}
	if body.Actions == nil {
		return nil, missingParam("actions is missing.")
	}
	return a.changePushRules(q, func(rules *pushrules.Ruleset) error {
		return rules.SetActions(pushrules.Kind(q.path("kind")), q.path("ruleId"), body.Actions)
	})
}
