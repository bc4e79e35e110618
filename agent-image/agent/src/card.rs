//! The agent card: what A2A clients read first.

use a2a::{AgentCapabilities, AgentCard, AgentInterface, AgentSkill, TRANSPORT_PROTOCOL_JSONRPC};

/// Where A2A clients look for it.
pub const CARD_PATH: &str = "/.well-known/agent-card.json";

/// The card of the agent that is reached at `public_url`.
pub fn agent_card(name: &str, version: &str, public_url: &str) -> AgentCard {
    let modes = || vec!["text/plain".to_owned()];
    AgentCard {
        name: name.to_owned(),
        description: "A customer service agent run by Flotilla.".to_owned(),
        version: version.to_owned(),
        supported_interfaces: vec![AgentInterface::new(
            format!("{}/", public_url.trim_end_matches('/')),
            TRANSPORT_PROTOCOL_JSONRPC,
        )],
        capabilities: AgentCapabilities {
            streaming: Some(true),
            push_notifications: Some(false),
            extensions: None,
            extended_agent_card: Some(false),
        },
        default_input_modes: modes(),
        default_output_modes: modes(),
        skills: vec![AgentSkill {
            id: "customer-service".to_owned(),
            name: "Customer service".to_owned(),
            description: "Answers questions about damaged products, bills and deliveries.".to_owned(),
            tags: vec!["support".to_owned()],
            examples: Some(vec!["My order 48213 arrived damaged.".to_owned()]),
            input_modes: None,
            output_modes: None,
            security_requirements: None,
        }],
        provider: None,
        documentation_url: None,
        icon_url: None,
        security_schemes: None,
        security_requirements: None,
        signatures: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_card_names_the_public_address_and_version_1_0() {
        let card = serde_json::to_value(agent_card("support", "support-6f9c4d", "http://support.shop.svc"))
            .expect("JSON");
        let interface = serde_json::json!({"url": "http://support.shop.svc/", "protocolBinding": "JSONRPC", "protocolVersion": "1.0"});
        assert_eq!(card["supportedInterfaces"], serde_json::json!([interface]));
        assert_eq!(
            (&card["name"], &card["version"]),
            (&"support".into(), &"support-6f9c4d".into())
        );
        assert_eq!(card["capabilities"]["streaming"], true);
    }
}
