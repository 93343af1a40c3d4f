"""The notebook's own test cells, with its class definitions replaced by imports from sacfast."""

import gymnasium as gym
import numpy as np
import torch

from sacfast import ActorNetwork, CriticNetwork, ReplayBuffer, SACAgent

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

# Test the replay buffer
print("\nTesting Replay Buffer...")
test_buffer = ReplayBuffer(capacity=100)

# Add some dummy transitions
for i in range(10):
    state = np.random.randn(23)
    action = np.random.randn(7)
    reward = np.random.randn()
    next_state = np.random.randn(23)
    done = False
    test_buffer.push(state, action, reward, next_state, done)

print(f"Buffer size: {len(test_buffer)}")
print(f"Can sample batch of 5: {test_buffer.is_ready(5)}")

# Sample a batch
states, actions, rewards, next_states, dones = test_buffer.sample(5)
print(f"\nSampled batch shapes:")
print(f"  States: {states.shape}")
print(f"  Actions: {actions.shape}")
print(f"  Rewards: {rewards.shape}")
print(f"  Next states: {next_states.shape}")
print(f"  Dones: {dones.shape}")
print("Replay Buffer test passed!")

# Test the networks
print("\nTesting Neural Networks...")
state_dim = 23  # Pusher observation space
action_dim = 7  # Pusher action space

# Create networks
actor = ActorNetwork(state_dim, action_dim).to(device)
critic = CriticNetwork(state_dim, action_dim).to(device)

# Test with dummy input
dummy_state = torch.randn(10, state_dim).to(device)
dummy_action = torch.randn(10, action_dim).to(device)

# Test actor
mean, log_std = actor(dummy_state)
action, log_prob, _ = actor.sample(dummy_state)
print(f"Actor output shapes:")
print(f"  Mean: {mean.shape}")
print(f"  Log std: {log_std.shape}")
print(f"  Action: {action.shape}")
print(f"  Log prob: {log_prob.shape}")

# Test critic
q1, q2 = critic(dummy_state, dummy_action)
print(f"\nCritic output shapes:")
print(f"  Q1: {q1.shape}")
print(f"  Q2: {q2.shape}")

print("\nNeural network tests passed!")

# Create environment
env = gym.make("Pusher-v5")
state_dim = env.observation_space.shape[0]
action_dim = env.action_space.shape[0]

print(f"Environment info:")
print(f"  State dimension: {state_dim}")
print(f"  Action dimension: {action_dim}")
print(f"  Action range: [{env.action_space.low[0]:.1f}, {env.action_space.high[0]:.1f}]")

# Create agent
agent = SACAgent(
    state_dim=state_dim,
    action_dim=action_dim,
    hidden_dim=256,
    lr=3e-4,
    gamma=0.99,
    tau=0.005,
    alpha=0.2,
    automatic_entropy_tuning=True,
    buffer_capacity=100000,
    device=device
)

print(f"\nAgent created")
print(f"  Device: {device}")
print(f"  Automatic entropy tuning: {agent.automatic_entropy_tuning}")
print(f"  Initial alpha: {agent.alpha.item():.4f}")

# Test action selection
print("\nTesting action selection...")
state, _ = env.reset()
action = agent.select_action(state, evaluate=False)
print(f"  State shape: {state.shape}")
print(f"  Action shape: {action.shape}")
print(f"  Action range: [{action.min():.3f}, {action.max():.3f}]")

# Collect some experiences
print("\nCollecting experiences...")
for _ in range(1000):
    action = agent.select_action(state)
    next_state, reward, terminated, truncated, _ = env.step(action)
    agent.replay_buffer.push(state, action, reward, next_state, terminated or truncated)
    state = next_state

    if terminated or truncated:
        state, _ = env.reset()

print(f"  Buffer size: {len(agent.replay_buffer)}")

# Test update
if agent.replay_buffer.is_ready(256):
    print("\nTesting update step...")
    metrics = agent.update(batch_size=256)
    print("  Update metrics:")
    for key, value in metrics.items():
        print(f"    {key}: {value:.4f}")
    print("  Update successful!")
else:
    print("\nNot enough samples for update")

env.close()
print("\nAll tests passed! SAC agent is ready for training.")
