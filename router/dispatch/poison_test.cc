#include "router/dispatch/poison.h"

#include "router/dispatch/testing_dispatcher.h"

namespace terrace {
namespace {

TEST(WorkerLosses, TheSecondOneAtOnePlaceIsTheRequestsDoing) {
  const struct {
    uint32_t tokens_between;
    bool is_second;
  } cases[] = {{0, true}, {WorkerLosses::kMostUnsent, true}, {WorkerLosses::kMostUnsent + 1, false}};
  for (const auto& c : cases) {
    WorkerLosses losses;
    for (int i = 0; i < 5; ++i) losses.OnToken();
    EXPECT_FALSE(losses.OnLoss());
    for (uint32_t i = 0; i < c.tokens_between; ++i) losses.OnToken();
    EXPECT_EQ(losses.OnLoss(), c.is_second) << c.tokens_between;
    EXPECT_TRUE(losses.OnLoss()) << "the next one is at that place";
  }
}

TEST(Quarantine, EntriesExpireAndTheOldestGiveWay) {
  FakeClock clock;
  Quarantine quarantine(clock);
  const auto name = [](int32_t token) { return RequestFingerprint("base", std::vector<TokenId>{token}); };
  EXPECT_TRUE(quarantine.is_empty());
  quarantine.Add(name(0));
  clock.Advance(Quarantine::kTime - Duration(1));
  quarantine.Add(name(1));
  EXPECT_TRUE(quarantine.Has(name(0)));
  clock.Advance(Duration(1));
  EXPECT_FALSE(quarantine.Has(name(0)));
  EXPECT_TRUE(quarantine.Has(name(1)));
  quarantine.Add(name(1));  // again: it is kept once, and for longer
  for (int32_t token = 2; token <= static_cast<int32_t>(Quarantine::kMost); ++token)
    quarantine.Add(name(token));
  EXPECT_TRUE(quarantine.Has(name(1)));
  quarantine.Add(name(0));
  EXPECT_FALSE(quarantine.Has(name(1)));
  clock.Advance(Quarantine::kTime);
  EXPECT_FALSE(quarantine.Has(name(2)));
  EXPECT_TRUE(quarantine.is_empty());
}

TEST(Quarantine, FingerprintsAreOfTheTierAndAllTokens) {
  const std::vector<TokenId> prompt = {1, 2}, longer = {1, 2, 3};
  EXPECT_EQ(RequestFingerprint("base", prompt), RequestFingerprint("base", prompt));
  EXPECT_NE(RequestFingerprint("base", prompt), RequestFingerprint("nano", prompt));
  EXPECT_NE(RequestFingerprint("base", prompt), RequestFingerprint("base", longer));
}

// Four replicas of nano and of base.
class PoisonTest : public DispatcherTest {
 protected:
  PoisonTest() {
    dispatcher_ = MakeDispatcher({wide_, *catalog_, balancer_, admission_, recorder_, clock_, 7});
  }

  void Ask(const std::string& model, const std::string& prompt = "abcd") {
    sink_ = std::make_shared<FakeSink>();
    Generate(Fields(model, prompt));
  }
  size_t Calls(size_t tier) {
    size_t calls = 0;
    for (size_t i = 0; i < wide_.tier(tier).replicas.size(); ++i)
      calls += wide_.replica(tier, i).calls.size();
    return calls;
  }
  double Events(const std::string& tier, const std::string& event) const {
    return Metric("terrace_poison_requests_total{event=\"" + event + "\",tier=\"" + tier + "\"}");
  }

  FakeCluster wide_{
      std::array<FakeCluster::TierSpec, 3>{{{"nano", 4, 64}, {"small", 1, 64}, {"base", 4, 64}}}};
};

const Status kGone = Unavailable("ipv4:10.0.0.1:8101: Socket closed");

TEST_F(PoisonTest, ARequestThatTookTwoWorkersDownIsTriedOnNoThirdOneAndRefusedWhenItComesAgain) {
  Ask("base");
  wide_.call(kBase, 0).Fail(kGone);
  EXPECT_FALSE(sink_->end.has_value());
  wide_.call(kBase, 1).Fail(kGone);
  EXPECT_EQ(End().status().code(), StatusCode::kInternal);
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_THAT(Message(End().status()), ::testing::HasSubstr("quarantine"));
  EXPECT_EQ(Calls(kBase), 2u);
  Ask("base");
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_EQ(Calls(kBase), 2u);
  Ask("base", "abce");
  wide_.call(kBase, 0).Answer("another");
  EXPECT_TRUE(End().ok());
  Ask("nano");
  wide_.call(kNano, 0).Answer("another tier");
  EXPECT_TRUE(End().ok());
  EXPECT_EQ(Events("base", "quarantined"), 1);
  EXPECT_EQ(Events("base", "refused"), 1);
  clock_.Advance(Quarantine::kTime);
  Ask("base");
  wide_.call(kBase, 0).Answer("again");
  EXPECT_TRUE(End().ok());
}

TEST_F(PoisonTest, SoIsAnAnswerInTheMiddleThatGetsNoFurther) {
  Ask("base");
  wide_.call(kBase, 0).SendText("some text");
  wide_.call(kBase, 0).Fail(kGone);
  wide_.call(kBase, 1).SendText("s");  // what the first one had not sent any more
  wide_.call(kBase, 1).Fail(kGone);
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_EQ(sink_->text, "some texts");
  EXPECT_EQ(Calls(kBase), 2u);
}

TEST_F(PoisonTest, AnAnswerThatGetsFurtherIsNotWhatTookItsWorkersDown) {
  Ask("base");
  const std::string piece(WorkerLosses::kMostUnsent + 1, 'x');
  wide_.call(kBase, 0).Fail(kGone);
  wide_.call(kBase, 1).SendText(piece);
  wide_.call(kBase, 1).Fail(kGone);
  wide_.call(kBase, 0).SendText(piece);
  wide_.call(kBase, 0).Fail(kGone);
  wide_.call(kBase, 1).Answer("end");
  ASSERT_TRUE(End().ok()) << End().status();
  EXPECT_EQ(sink_->text, piece + piece + "end");
}

TEST_F(PoisonTest, OnlyWorkersThatDieCount) {
  const Status others[] = {WithReason(Unavailable("stopping"), "draining"),
                           WithReason(Unavailable("another"), "wrong_instance"),
                           WithReason(Unavailable("no connection"), kUnreachedReason),
                           WithReason(Unavailable("quiet"), kSilentReason),
                           WithReason(ResourceExhausted("full"), "overloaded"),
                           Cancelled("going down"),
                           Internal("bug")};
  for (const Status& other : others) {
    clock_.Advance(std::chrono::seconds(RetryBudget::kWindowSeconds));
    Ask("base");
    wide_.call(kBase, 0).Fail(kGone);
    wide_.call(kBase, 1).Fail(other);
    wide_.call(kBase, 2).Answer("ok");
    EXPECT_TRUE(End().ok()) << other << ": " << End().status();
  }
  clock_.Advance(std::chrono::seconds(RetryBudget::kWindowSeconds));
  Ask("base");
  wide_.call(kBase, 0).Fail(kGone);
  wide_.tier(kBase).replicas[1].state = ReplicaState::kDraining;
  wide_.call(kBase, 1).Fail(kGone);  // it was to go anyway
  wide_.call(kBase, 2).Answer("ok");
  EXPECT_TRUE(End().ok()) << End().status();
}

TEST_F(PoisonTest, ThreeWorkersAreLostByNoRequestAlsoOverSeveralTiers) {
  Ask("auto");
  wide_.call(kNano, 0).Fail(kGone);
  wide_.call(kNano, 1).Fail(kGone);
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_EQ(Calls(kSmall), 0u);
  Ask("auto");
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
  EXPECT_EQ(Calls(kNano), 2u);

  Ask("auto", "abce");
  wide_.call(kNano, 0).Fail(kGone);
  wide_.call(kNano, 1).Answer("hm", kUnsure);
  wide_.call(kSmall, 0).Fail(kGone);
  EXPECT_EQ(Reason(End().status()), kPoisonReason) << "it got three tokens further";
}

TEST_F(PoisonTest, OneThatOthersFoundOutIsNotTriedFurtherEither) {
  Ask("base");
  const auto first = sink_;
  Ask("base");
  const auto first_calls = wide_.replica(kBase, 0).calls;  // of both
  first_calls[0]->Fail(kGone);
  wide_.call(kBase, 1).Fail(kGone);
  EXPECT_EQ(Reason(first->end->status()), kPoisonReason);
  first_calls[1]->SendText("a");
  first_calls[1]->Fail(WithReason(Unavailable("stopping"), "draining"));
  EXPECT_EQ(Reason(End().status()), kPoisonReason);
}

TEST_F(PoisonTest, ScoresToo) {
  RequestFields fields = Fields("base", std::string("abc"));
  fields.api = ApiKind::kScore;
  for (int i = 0; i < 2; ++i) {
    std::optional<StatusOr<ScoreAnswer>> scored;
    dispatcher_->Score(*Request::Make(fields),
                       [&](StatusOr<ScoreAnswer> answer) { scored = std::move(answer); });
    if (i == 0) wide_.call(kBase, 0).Fail(kGone);
    if (i == 0) wide_.call(kBase, 1).Fail(kGone);
    ASSERT_TRUE(scored.has_value());
    EXPECT_EQ(Reason(scored->status()), kPoisonReason);
    EXPECT_EQ(Calls(kBase), 2u);
  }
}

}  // namespace
}  // namespace terrace
